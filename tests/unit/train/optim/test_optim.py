from typing import Any

import pytest
from pydantic import ValidationError

from tests.tiny import grouped_config
from tests.training import moe_config
from ziphius.models.model import Model
from ziphius.train.optim import OPTIMIZERS, build_optimizer
from ziphius.train.optim.parts import part_of, parts
from ziphius.train.optimizer_config import OptimizerConfig


def groups_of(model: Model, optimizer: str) -> dict[str, tuple[int, float]]:
    """By name: the matrices in a parameter and its weight decay."""
    built = build_optimizer(model, OptimizerConfig(name=optimizer))
    return {
        name: (group["matrices"], group["weight_decay"])
        for group in built.param_groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_trained_parameter_is_in_one_group(name: str, tied: bool) -> None:
    model = Model(moe_config(tie_word_embeddings=tied))
    model.model.norm.requires_grad_(False)
    expected = [name for name, p in model.named_parameters() if p.requires_grad]
    assert "model.norm.weight" not in expected
    assert sorted(groups_of(model, name)) == sorted(expected)


def test_muon_takes_the_matrices_between_hidden_states() -> None:
    groups = groups_of(Model(moe_config()), "muon")
    block = "model.layers.1."
    assert groups[block + "self_attn.q_a_proj.weight"] == (1, 0.1)
    assert groups[block + "mlp.experts.gate_up_proj"] == (2, 0.1)
    assert groups[block + "mlp.experts.down_proj"] == (1, 0.1)
    assert groups["model.layers.2.eh_proj.weight"] == (1, 0.1)
    for name in ("model.embed_tokens.weight", "lm_head.weight", block + "mlp.gate.weight"):
        assert groups[name] == (0, 0.1)
    assert groups["model.norm.weight"] == (0, 0.0)


def test_adamw_takes_all_and_norms_and_biases_do_not_decay() -> None:
    groups = groups_of(Model(grouped_config(qkv_bias=True)), "adamw")
    assert {matrices for matrices, _ in groups.values()} == {0}
    assert groups["model.layers.0.self_attn.q_proj.bias"] == (0, 0.0)
    assert groups["model.layers.0.mlp.up_proj.weight"] == (0, 0.1)


OWN: dict[str, dict[str, Any]] = {
    "adamw": {"beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "moments": "bfloat16"},
    "muon": {"momentum": 0.9, "update_rms": 0.2, "newton_schulz_steps": 4},
}
SHARED = {"muon": OWN["adamw"]}
"""Muon leaves some weights to AdamW."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_of_other_optimizers_are_refused(name: str) -> None:
    own = OWN[name] | SHARED.get(name, {})
    OptimizerConfig(name=name, **own)
    for field, value in {**OWN["adamw"], **OWN["muon"]}.items():
        if field not in own:
            with pytest.raises(ValidationError, match=f"{field} has no effect with .* {name}"):
                OptimizerConfig(name=name, **{field: value})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norms"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.q_a_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.kv_b_proj.weight", "attention"),
        ("model.layers.0.mlp.up_proj.weight", "mlp"),
        ("model.layers.1.mlp.gate.weight", "router"),
        ("model.layers.1.mlp.experts.down_proj", "experts"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", "experts"),
        ("model.layers.1.mlp.gate_proj.weight", "mlp"),
    ],
)
def test_parameters_have_their_parts(name: str, part: str) -> None:
    assert part_of(name) == part


def test_parts_hold_each_trained_parameter_once_and_mtp_is_its_own() -> None:
    model = Model(moe_config())
    model.model.embed_tokens.requires_grad_(False)
    found = parts(model)
    members = [id(p) for group in found.values() for p in group]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in model.parameters() if p.requires_grad}
    assert "embed" not in found
    assert {id(p) for p in found["mtp"]} == {id(p) for p in model.model.layers[2].parameters()}
