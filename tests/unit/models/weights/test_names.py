"""Names in files against those of the published checkpoints."""

import pytest
import torch

from tests.tiny import build, grouped_config
from tests.unit.models.weights.files import v3_config
from ziphius.models.weights.names import (
    file_copies,
    file_slots,
    is_projection,
    layer_of,
    model_tensors,
)

# The published names of a V3 layer; layer 0 here is dense, layer 1 has experts, layer 2 is MTP.
ATTENTION = [
    "self_attn.q_a_proj.weight",
    "self_attn.q_a_layernorm.weight",
    "self_attn.q_b_proj.weight",
    "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.kv_a_layernorm.weight",
    "self_attn.kv_b_proj.weight",
    "self_attn.o_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]
DENSE = [f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
SHARED = [f"mlp.shared_experts.{kind}_proj.weight" for kind in ("gate", "up", "down")]
ROUTER = ["mlp.gate.weight", "mlp.gate.e_score_correction_bias"]
EXPERTS = [
    f"mlp.experts.{expert}.{kind}_proj.weight"
    for expert in range(8)
    for kind in ("gate", "up", "down")
]
MTP = ["enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"]


def published_names():
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    names |= {f"model.layers.0.{name}" for name in ATTENTION + DENSE}
    for layer, mtp_layers in ((1, []), (2, MTP)):
        parts = ATTENTION + SHARED + ROUTER + EXPERTS + mtp_layers
        names |= {f"model.layers.{layer}.{name}" for name in parts}
    return names


def test_every_published_name_has_a_slot_and_no_other():
    assert set(file_slots(build(v3_config()))) == published_names()


def test_slots_cover_every_number_once():
    model = build(v3_config())
    covered = {name: torch.zeros_like(tensor) for name, tensor in model_tensors(model).items()}
    for name, slot in file_slots(model).items():
        part = slot.of(covered[slot.name])
        assert part.shape == slot.shape, name
        part += 1
    assert all(bool((tensor == 1).all()) for tensor in covered.values())


def test_gate_rows_come_before_up_rows():
    model = build(v3_config())
    slots = file_slots(model)
    stacked = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    prefix = "model.layers.1.mlp.experts.3"
    assert torch.equal(slots[f"{prefix}.gate_proj.weight"].of(stacked), stacked[3, :12])
    assert torch.equal(slots[f"{prefix}.up_proj.weight"].of(stacked), stacked[3, 12:])


def test_mtp_layers_carry_copies():
    assert file_copies(v3_config(num_nextn_predict_layers=2)) == {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
        "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight": "lm_head.weight",
    }


def test_a_tied_head_is_a_copy_of_the_embedding():
    config = grouped_config(tie_word_embeddings=True)
    assert file_copies(config) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in file_slots(build(config))
    assert file_copies(grouped_config()) == {}


@pytest.mark.parametrize("name", sorted(published_names()))
def test_fp8_covers_what_the_published_files_quantize(name):
    # Facts of the published V3 files: projections of attention and feed-forward layers only.
    kinds = ("q_a", "q_b", "kv_b", "o", "gate", "up", "down")
    last = name.split(".")[-2]
    expected = last in {f"{kind}_proj" for kind in kinds} | {"kv_a_proj_with_mqa"}
    assert is_projection(name) == expected


def test_grouped_projections_are_quantized_and_their_biases_are_not():
    assert is_projection("model.layers.0.self_attn.k_proj.weight")
    assert not is_projection("model.layers.0.self_attn.k_proj.bias")
    assert not is_projection("model.layers.0.self_attn.k_norm.weight")


def test_layer_numbers_are_read_from_names():
    assert layer_of("model.layers.61.eh_proj.weight") == 61
    assert layer_of("model.norm.weight") is None
    assert layer_of("model.layers." + "9" * 5000 + ".x") is None
