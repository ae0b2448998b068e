"""Weights against transformers in both directions, FP8 against its bits, and the peak of memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.numerics.oracles import twin
from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.models.weights import load, save
from ziphius.models.weights.names import is_projection

LOGITS_TOLERANCE = 2e-5

CONFIGS = {
    "v2": latent_config(model_type="deepseek_v2", **V2_EXPERTS, qk_nope_head_dim=12),
    "v2-lite": latent_config(
        model_type="deepseek_v2",
        **(V2_EXPERTS | {"topk_method": "greedy", "n_group": 1, "topk_group": 1}),
        qk_nope_head_dim=12,
        q_lora_rank=None,
    ),
    "v3": latent_config(**V3_EXPERTS),
    "v3-mtp": latent_config(**V3_EXPERTS, num_nextn_predict_layers=1),
    "llama": grouped_config(attention_bias=True),
    "llama-tied": grouped_config(tie_word_embeddings=True),
    "qwen2": grouped_config(model_type="qwen2", qkv_bias=True),
    "qwen3": grouped_config(model_type="qwen3", qk_norm=True, tie_word_embeddings=True),
}


def load_in_transformers(folder, **options):
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
        local_files_only=True,
        **options,
    )
    return theirs.eval(), info


def logits_of(model, ids_BT):
    with torch.no_grad():
        return model.logits(model(ids_BT).hidden_BTD)


@pytest.mark.parametrize("shard_bytes", [10_000, 10**9])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_what_is_saved(name, shard_bytes, tmp_path):
    ours = build(CONFIGS[name])
    save(ours, tmp_path / "m", weight_format="float32", max_shard_bytes=shard_bytes)
    theirs, info = load_in_transformers(tmp_path / "m", dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    # transformers leaves out the MTP layers of V3 under the one number 61. At another number it
    # leaves them out too, but names them; nothing else may be named.
    layers = ours.config.num_hidden_layers
    unexpected = {key for key in info["unexpected_keys"] if f"layers.{layers}." not in key}
    assert not unexpected
    assert bool(info["unexpected_keys"]) == (name == "v3-mtp")
    ids_BT = random_ids(2, 11, 61)
    with torch.no_grad():
        expected_BTW = theirs(ids_BT).logits
    assert (logits_of(ours, ids_BT) - expected_BTW).abs().max() <= LOGITS_TOLERANCE


def test_what_transformers_saves_of_a_v3_with_an_mtp_layer_is_read(tmp_path, caplog):
    """Its config names the layer and its files lack it: one line says that it is left out."""
    ours = build(CONFIGS["v3-mtp"])
    save(ours, tmp_path / "ours", weight_format="float32")
    theirs, _ = load_in_transformers(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    caplog.clear()
    read = load(tmp_path / "theirs", dtype=torch.float32)
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("ziphius")]
    assert "num_nextn_predict_layers = 1, but no file holds such a layer" in line
    assert read.config.num_nextn_predict_layers == 0
    ids_BT = random_ids(2, 11, 61)
    assert (logits_of(read, ids_BT) - logits_of(ours, ids_BT)).abs().max() <= LOGITS_TOLERANCE


def test_transformers_finds_nothing_unexpected_in_61_layers_and_a_prediction_layer(tmp_path):
    config = latent_config(**V3_EXPERTS, num_hidden_layers=61, num_nextn_predict_layers=1)
    save(build(config), tmp_path / "m", weight_format="float32")
    _, info = load_in_transformers(tmp_path / "m", dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "v3-mtp"])
def test_what_transformers_saves_is_loaded(name, dtype, tmp_path):
    ours = build(CONFIGS[name])
    twin(ours).to(dtype).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    loaded = load(tmp_path / "m")
    states = ours.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    for tensor_name, tensor in states[0].items():
        assert torch.equal(states[1][tensor_name].to(dtype), tensor.to(dtype)), tensor_name
    ids_BT = random_ids(2, 11, 61)
    if dtype is torch.float32:
        assert torch.equal(logits_of(loaded, ids_BT), logits_of(ours, ids_BT))


# The shape of V3 where FP8 is hard: 576 rows of kv_a_proj_with_mqa are 4.5 blocks.
V3_SHAPE = latent_config(
    **(V3_EXPERTS | {"moe_intermediate_size": 136}),
    hidden_size=200,
    intermediate_size=300,
    q_lora_rank=130,
    kv_lora_rank=512,
    qk_nope_head_dim=40,
    qk_rope_head_dim=64,
    v_head_dim=40,
    num_nextn_predict_layers=1,
)


def e4m3_values():
    """All 256 numbers of the format by its definition: 1 sign, 4 exponent, 3 fraction bits."""
    bits = np.arange(256)
    exponent, fraction = (bits >> 3) & 15, bits & 7
    normal = 2.0 ** (exponent - 7) * (1 + fraction / 8)
    values = np.where(exponent == 0, fraction * 2.0**-9, normal)
    values[bits & 127 == 127] = np.nan
    return np.where(bits & 128, -values, values).astype(np.float32)


def dequantized(numbers, scales):
    """Multiply every number by the scale of its block, from the stored bytes."""
    values = e4m3_values()[numbers.view(torch.uint8).numpy()]
    rows, columns = np.indices(values.shape)
    return torch.from_numpy(values * scales.numpy()[rows // 128, columns // 128])


@pytest.mark.parametrize("weight_format", ["fp8", "fp8-ue8m0"])
def test_an_fp8_folder_of_v3_shape_round_trips(weight_format, tmp_path):
    ours = build(V3_SHAPE)
    save(ours, tmp_path / "m", weight_format=weight_format, max_shard_bytes=400_000)
    save(ours, tmp_path / "plain")
    stored = {}
    for file in (tmp_path / "m").glob("*.safetensors"):
        stored |= load_file(file)
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    scales = {name for name in stored if name.endswith("_scale_inv")}
    assert set(stored) - scales == set(plain)
    assert scales == {f"{name}_scale_inv" for name in plain if is_projection(name)}
    kv_a = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    assert stored[kv_a].shape == (576, 200)
    assert stored[kv_a + "_scale_inv"].shape == (5, 2)

    loaded = load(tmp_path / "m", dtype=torch.float32)
    assert loaded.config == ours.config
    state, original = loaded.state_dict(), ours.state_dict()
    assert state.keys() == original.keys()
    checked = 0
    for name, tensor in stored.items():
        if name in scales:
            continue
        expected = tensor.float()
        if name + "_scale_inv" in scales:
            expected = dequantized(tensor, stored[name + "_scale_inv"])
        checked += torch.equal(in_memory(name, state), expected)
    # Two copies of the MTP layer are in the files and not in memory, and they compared too.
    assert checked == len(plain)
    for name in original:
        if name.endswith("e_score_correction_bias"):
            assert original[name].abs().min() > 0
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], original[name])


def in_memory(name, state):
    """Find a file tensor in a model's state, spelled out once more."""
    parts = name.split(".")
    if "experts" in parts:
        at = parts.index("experts")
        prefix, expert = ".".join(parts[: at + 1]), int(parts[at + 1])
        width = V3_SHAPE.moe_intermediate_size
        halves = {"gate_proj": slice(0, width), "up_proj": slice(width, 2 * width)}
        if parts[at + 2] in halves:
            return state[f"{prefix}.gate_up_proj"][expert][halves[parts[at + 2]]]
        return state[f"{prefix}.down_proj"][expert]
    if name.endswith(".embed_tokens.weight"):
        return state["model.embed_tokens.weight"]
    return state["lm_head.weight" if name.endswith(".head.weight") else name]


@pytest.mark.parametrize("weight_format", ["fp8", "fp8-ue8m0"])
def test_transformers_dequantizes_an_fp8_folder_to_the_same_weights(weight_format, tmp_path):
    # Multiples of 128 throughout: with others transformers 5.23 fails on a CPU.
    config = latent_config(
        **(V3_EXPERTS | {"moe_intermediate_size": 128, "n_routed_experts": 4, "n_group": 2}),
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    save(build(config), tmp_path / "m", weight_format=weight_format)
    theirs, info = load_in_transformers(tmp_path / "m", dtype=torch.bfloat16)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    state, loaded = theirs.state_dict(), load(tmp_path / "m").state_dict()
    assert state.keys() == loaded.keys()
    for name, tensor in loaded.items():
        # They round scales to bfloat16 before the product and we the product alone.
        slack = 2**-7 if weight_format == "fp8" and name.endswith("proj.weight") else 0
        slack = 2**-7 if weight_format == "fp8" and "experts." in name else slack
        difference = (state[name].float() - tensor.float()).abs()
        assert (difference <= slack * tensor.float().abs()).all(), name


MEASURE = """
import re, sys
from pathlib import Path
import torch
from ziphius.models.weights import load
torch.set_num_threads(1)
def peak():
    # Not getrusage: its peak is the parent's, from before this program was started.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024
load(sys.argv[3], dtype=getattr(torch, sys.argv[2]))  # brings in what code is needed for it
before = peak()
model = load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
after = peak()
tensors = [*model.parameters(), *model.buffers()]
print(after - before, sum(t.numel() * t.itemsize for t in tensors))
"""

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("weight_format", "dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
        ("fp8", "bfloat16"),
        ("bfloat16", "float32"),
    ],
)
def test_the_peak_of_memory_is_the_model(tmp_path, weight_format, dtype):
    config = latent_config(
        **(V3_EXPERTS | {"moe_intermediate_size": 512}),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        vocab_size=4000,
    )
    save(build(config), tmp_path / "m", weight_format=weight_format, max_shard_bytes=16 * MIB)
    files = [file.stat().st_size for file in (tmp_path / "m").glob("*.safetensors")]
    assert len(files) > 4
    save(build(latent_config(**V3_EXPERTS)), tmp_path / "small", weight_format=weight_format)
    command = [
        sys.executable,
        "-c",
        MEASURE,
        *map(str, (tmp_path / "m", dtype, tmp_path / "small")),
    ]
    # One arena: with several, the C library keeps a tensor's worth of freed memory in each.
    env = os.environ | {"MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=env
    )
    grown, model_bytes = map(int, result.stdout.split())
    assert model_bytes > 150 * MIB
    largest_tensor = 1024 * 4096 * 4
    slack = 15 * MIB  # less than one tensor
    assert slack < largest_tensor
    # A tensor is there twice while FP8 is multiplied out; no other is, nor is a part of a file.
    in_hand = 2 * largest_tensor if weight_format == "fp8" else 0
    assert grown <= model_bytes + in_hand + slack
    # The measure itself is alive: less than the model would mean that it saw nothing.
    assert grown >= 0.95 * model_bytes


def test_index_total_is_what_transformers_writes(tmp_path):
    ours = build(CONFIGS["v3"])
    save(ours, tmp_path / "ours", weight_format="float32", max_shard_bytes=10_000)
    twin(ours).save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    ours_total, theirs_total = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text())["metadata"]
        for name in ("ours", "theirs")
    )
    assert ours_total["total_size"] == theirs_total["total_size"]
