"""adapter_config.json of PEFT: what is applied follows PEFT's formulas, all else is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.core.errors import CheckpointError
from ziphius.models.config import ModelConfig
from ziphius.models.lora import LoraLinear, adapter_tensors, add_adapters, merge_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights.adapters import load_adapters, save_adapters

GROUPED = grouped_config(num_hidden_layers=3)
LATENT = latent_config(**V3_EXPERTS, num_nextn_predict_layers=1)
# As PEFT 0.17 writes it, with everything at its default.
SETTINGS: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "deepseek-ai/x",
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}
BLOCKS = tuple(f"model.layers.{layer}" for layer in range(3))
QV = tuple(f"{block}.self_attn.{part}_proj" for block in BLOCKS for part in "qv")


def write(
    folder: Path,
    config: ModelConfig,
    layers: dict[str, int],
    more: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """Write adapters of these projections, with their ranks, as PEFT does; return A and B."""
    generator = torch.Generator().manual_seed(0)
    model, tensors = build(config), dict(more or {})
    for name, rank in layers.items():
        layer = model.get_submodule(name)
        for part, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            drawn = 0.3 * torch.randn(shape, generator=generator)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = drawn
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))
    return tensors


def adapted(model: Model) -> dict[str, LoraLinear]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@pytest.mark.parametrize(
    ("changes", "ranks", "scalings"),
    [
        ({}, {}, dict.fromkeys(QV, 16 / 4)),
        ({"use_rslora": True}, {}, dict.fromkeys(QV, 16 / math.sqrt(4))),
        (
            {"alpha_pattern": {"q_proj": 2}},
            {},
            {name: (2 if name.endswith("q_proj") else 16) / 4 for name in QV},
        ),
        (
            {"rank_pattern": {"layers.1.self_attn.v_proj": 2}},
            {"model.layers.1.self_attn.v_proj": 2},
            {name: 16 / (2 if name == "model.layers.1.self_attn.v_proj" else 4) for name in QV},
        ),
        (
            {
                "rank_pattern": {r"model\.layers\.[02]\..*(q|v)_proj": 9},
                "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, ".*q_proj": 5},
                "use_rslora": True,
            },
            {name: 9 for name in QV if ".1." not in name},
            {
                name: {"q": 3 if ".0." in name else 5, "v": 16}[name[-6]]
                / math.sqrt(4 if ".1." in name else 9)
                for name in QV
            },
        ),
        # A pattern is no part of a name: "_proj" matches neither q_proj nor v_proj.
        ({"alpha_pattern": {"_proj": 2, "proj": 3}}, {}, dict.fromkeys(QV, 16 / 4)),
    ],
)
def test_rank_and_scaling_are_those_of_peft(
    changes: dict[str, Any], ranks: dict[str, int], scalings: dict[str, float], tmp_path: Path
) -> None:
    tensors = write(tmp_path / "a", GROUPED, {name: ranks.get(name, 4) for name in QV}, **changes)
    model, plain = build(GROUPED), build(GROUPED)
    load_adapters(model, tmp_path / "a")
    layers = adapted(model)
    assert layers.keys() == scalings.keys()
    for name, layer in layers.items():
        assert layer.scaling == pytest.approx(scalings[name], rel=1e-12), name
        down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        merged = plain.get_submodule(name).weight + scalings[name] * up @ down
        assert torch.allclose(layer.weight, merged, atol=1e-5), name


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": r".*\.(q|v)_proj"}, QV),
        ({"target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"}, QV),
        ({"layers_to_transform": [0, 2]}, [name for name in QV if ".1." not in name]),
        ({"layers_to_transform": 1}, [name for name in QV if ".1." in name]),
        (
            {"layers_to_transform": [1], "layers_pattern": "layers"},
            [name for name in QV if ".1." in name],
        ),
        ({"layers_to_transform": []}, QV),
        # The whole name of a module stands above the choice of layers.
        ({"layers_to_transform": [1], "target_modules": [QV[0]]}, QV[:1]),
        ({"exclude_modules": ["v_proj"]}, [name for name in QV if name.endswith("q_proj")]),
        ({"exclude_modules": r".*\.2\..*"}, [name for name in QV if ".2." not in name]),
        ({"target_modules": ["self_attn.q_proj", "c_attn"]}, QV[::2]),
    ],
)
def test_the_projections_are_those_of_peft(
    changes: dict[str, Any], names: list[str] | None, tmp_path: Path
) -> None:
    if names is None:
        parts = [f"self_attn.{part}_proj" for part in "qkvo"]
        parts += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
        names = [f"{block}.{part}" for block in BLOCKS for part in parts]
    write(tmp_path / "a", GROUPED, dict.fromkeys(names, 4), **changes)
    model = build(GROUPED)
    load_adapters(model, tmp_path / "a")
    assert set(adapted(model)) == set(names)


@pytest.mark.parametrize(
    "changes",
    [{"layers_to_transform": [1]}, {"exclude_modules": ["v_proj"]}, {"target_modules": ["q_proj"]}],
)
def test_a_file_with_more_than_the_settings_choose_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "a", GROUPED, dict.fromkeys(QV, 4), **changes)
    with pytest.raises(CheckpointError, match=r"lora_[AB]\.weight is left over"):
        load_adapters(build(GROUPED), tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head", "embed_tokens"]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("megatron_config", {"a": 1}),
        ("alora_invocation_tokens", [5]),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("peft_type", "IA3"),
        ("use_something_new", True),
        ("layers_pattern", ["h"]),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(
    name: str, value: object, tmp_path: Path
) -> None:
    write(tmp_path / "a", GROUPED, dict.fromkeys(QV, 4), **{name: value})
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {name} = "):
        load_adapters(build(GROUPED), tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 0}, "r: "),
        ({"r": True}, "r: "),
        ({"lora_alpha": "16"}, "lora_alpha: "),
        ({"target_modules": None}, "target_modules"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "too involved"),
        ({"alpha_pattern": {"a?a?a?a?a?a": 3}}, "too involved"),
        ({"alpha_pattern": {"(q_proj": 3}}, "no regular expression"),
        ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "layers_to_transform"),
        ({"rank_pattern": {"q_proj": 8}}, r"lora_A\.weight has the shape \[4, 24\], not \[8, 24\]"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write(tmp_path / "a", GROUPED, dict.fromkeys(QV, 4), **changes)
    with pytest.raises(CheckpointError, match=words):
        load_adapters(build(GROUPED), tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.experts.1.up_proj.lora_A.weight",
    ],
)
def test_a_tensor_that_is_no_adapter_is_never_passed_over(name: str, tmp_path: Path) -> None:
    write(
        tmp_path / "a", GROUPED, dict.fromkeys(QV, 4), {f"base_model.model.{name}": torch.ones(3)}
    )
    with pytest.raises(CheckpointError, match=f"base_model.model.{name} is left over"):
        load_adapters(build(GROUPED), tmp_path / "a")


def test_adapters_of_a_program_without_mtp_layers_are_read(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.kv_b_proj" for layer in range(2)]
    changes = {"target_modules": ["kv_b_proj"]}
    write(tmp_path / "a", LATENT, dict.fromkeys(names, 4), **changes)
    model = build(LATENT)
    load_adapters(model, tmp_path / "a")
    assert list(adapted(model)) == names
    mtp_layers = "model.layers.2.self_attn.kv_b_proj"
    write(tmp_path / "b", LATENT, {names[0]: 4, mtp_layers: 4}, **changes)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.kv_b_proj\S+ is missing"):
        load_adapters(build(LATENT), tmp_path / "b")


def test_nothing_of_the_model_changes_when_adapters_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", GROUPED, dict.fromkeys(QV, 4), use_dora=True)
    model = build(GROUPED)
    with pytest.raises(CheckpointError):
        load_adapters(model, tmp_path / "a")
    assert not adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_what_was_read_with_patterns_is_written_with_patterns(tmp_path: Path) -> None:
    ranks = {name: 2 if name.endswith("v_proj") else 4 for name in QV}
    changes = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True}
    write(tmp_path / "a", GROUPED, ranks, **changes)
    first, second = build(GROUPED), build(GROUPED)
    load_adapters(first, tmp_path / "a")
    save_adapters(first, tmp_path / "b", base="x")
    load_adapters(second, tmp_path / "b")
    before, after = load_file(tmp_path / "a/adapter_model.safetensors"), adapter_tensors(second)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[f"base_model.model.{name}"])
    ids_BT = random_ids(1, 9, 61)
    merge_adapters(first)
    expected = first.logits(first(ids_BT).hidden_BTD)
    assert torch.allclose(second.logits(second(ids_BT).hidden_BTD), expected, atol=1e-4)


def test_adapters_of_one_size_are_written_without_patterns(tmp_path: Path) -> None:
    model = build(GROUPED)
    add_adapters(model, LoraConfig(rank=3, alpha=6.0), seed=0)
    save_adapters(model, tmp_path / "a", base="x")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({}, {})
