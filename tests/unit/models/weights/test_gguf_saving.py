"""GGUF files that we write: read back, and what no such file can say refused by name."""

from types import SimpleNamespace

import pytest
import torch

from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config
from ziphius.core import files
from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.core.gguf_header import read_gguf_header
from ziphius.models.config import LinearScaling, Llama3Scaling, YarnScaling
from ziphius.models.presets import PRESETS
from ziphius.models.weights import load, save_gguf
from ziphius.quant.int8 import quantize

VOCABULARY = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 61}
FAMILIES = {
    "llama": grouped_config(**WIDE),
    "llama biases": grouped_config(**WIDE, attention_bias=True, tie_word_embeddings=True),
    "llama linear": grouped_config(**WIDE, rope_scaling=LinearScaling(factor=4.0)),
    "llama 3.1": grouped_config(
        **WIDE | {"head_dim": 32, "rope_theta": 5e5},
        rope_scaling=Llama3Scaling(
            factor=8.0,
            original_max_position_embeddings=8192,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    ),
    "qwen2": grouped_config(**WIDE | {"num_attention_heads": 8}, model_type="qwen2", qkv_bias=True),
    "qwen3": grouped_config(**WIDE, model_type="qwen3", qk_norm=True),
}


def written(model, folder, weight_format="float32"):
    save_gguf(model, folder / "m.gguf", VOCABULARY, weight_format=weight_format)
    return folder / "m.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_in_float32_is_read_as_it_was(tmp_path, family):
    model = build(FAMILIES[family])
    loaded = load(written(model, tmp_path))
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


READ_TOO = {
    name: c for name, c in PRESETS.items() if name.endswith("-tiny") and c.attention == "gqa"
}


@pytest.mark.parametrize("name", READ_TOO)
def test_every_tiny_preset_that_can_be_read_computes_what_it_did(tmp_path, name):
    model = build(READ_TOO[name]).eval()
    loaded = load(written(model, tmp_path))
    assert loaded.config.rope_scaling == model.config.rope_scaling
    # Longer than the context before any scaling: 300 > 256.
    tokens_BT = torch.arange(300).unsqueeze(0) % model.config.vocab_size
    with torch.no_grad():
        found, expected = (m.logits(m(tokens_BT).hidden_BTD) for m in (loaded, model))
    assert torch.equal(found, expected)


def test_a_disk_without_room_is_told_of_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**4))
    with pytest.raises(OutputError, match=r"the model in q8_0 takes .* are free on the disk of"):
        written(build(FAMILIES["llama"]), tmp_path / "new", "q8_0")
    assert list(tmp_path.iterdir()) == []


# Largest error of a number in units of the largest of its block of 32, or of itself.
STEPS = {"float16": 2**-11, "bfloat16": 2**-8, "q8_0": 1 / 220, "q4_0": 1 / 8}


@pytest.mark.parametrize("weight_format", STEPS)
def test_every_format_is_as_near_as_it_can_be(tmp_path, weight_format):
    model = build(grouped_config(**WIDE | {"num_attention_heads": 8}))
    loaded = load(written(model, tmp_path, weight_format))
    changed = set()
    for name, tensor in model.state_dict().items():
        error = (loaded.state_dict()[name] - tensor).abs()
        if tensor.dim() == 1:
            assert not error.any(), name
            continue
        in_blocks = weight_format.startswith("q")
        largest = tensor.abs().unflatten(1, (-1, 32 if in_blocks else 1)).amax(-1)
        kept_finer = weight_format == "q4_0" and "layers" not in name
        step = STEPS["q8_0"] if kept_finer else STEPS[weight_format]
        blocks = error.unflatten(1, (-1, 32 if in_blocks else 1)).amax(-1)
        assert (blocks <= largest * step + 1e-7).all(), name
        changed |= {name} if error.any() else set()
    assert len(changed) == 16


def test_rows_that_blocks_do_not_divide_are_float16_and_counted(tmp_path):
    model = build(grouped_config(**WIDE | {"num_attention_heads": 8, "intermediate_size": 40}))
    counts = save_gguf(model, tmp_path / "m.gguf", VOCABULARY, weight_format="q4_0")
    assert counts == {"Q8_0": 2, "F32": 5, "Q4_0": 12, "F16": 2}
    tensors = read_gguf_header(tmp_path / "m.gguf").tensors
    assert [name for name, entry in tensors.items() if entry.type_number == 1] == [
        "blk.0.ffn_down.weight",
        "blk.1.ffn_down.weight",
    ]


def test_experts_and_latent_attention_have_the_names_and_shapes_of_llama_cpp(tmp_path):
    model = build(latent_config(**V3_EXPERTS))
    header = read_gguf_header(written(model, tmp_path))
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    assert header.metadata["general.architecture"] == "deepseek2"
    assert shapes["blk.1.attn_k_b.weight"] == (3, 12, 10)
    assert shapes["blk.1.attn_v_b.weight"] == (3, 9, 12)
    assert shapes["blk.1.ffn_gate_exps.weight"] == shapes["blk.1.ffn_up_exps.weight"] == (8, 12, 24)
    assert shapes["blk.1.ffn_down_exps.weight"] == (8, 24, 12)
    assert shapes["blk.1.exp_probs_b.bias"] == (8,)
    assert header.metadata["deepseek2.expert_group_count"] == 4
    assert header.metadata["deepseek2.expert_group_used_count"] == 2


NO_MSCALE = YarnScaling(factor=8.0, original_max_position_embeddings=32)
REFUSED = {
    r"num_nextn_predict_layers = 1: llama\.cpp has no MTP layers.*\(--drop-mtp\)": latent_config(
        num_nextn_predict_layers=1
    ),
    "pattern = sliding_window": grouped_config(pattern="sliding_window", sliding_window=8),
    "topk_method = group_limited_greedy.*two best": latent_config(
        **V2_EXPERTS, model_type="deepseek_v2"
    ),
    "moe_layer_freq = 2": latent_config(**V3_EXPERTS | {"moe_layer_freq": 2}, num_hidden_layers=3),
    "n_shared_experts = 0": latent_config(**V3_EXPERTS | {"n_shared_experts": 0}),
    "n_routed_experts = 8.*llama is dense": grouped_config(**V3_EXPERTS),
    "rms_norm_eps = 1e-05": latent_config(rms_norm_eps=1e-5),
    "num_hidden_layers = 27": latent_config(num_hidden_layers=27),
    "rope_scaling = .*mscale_all_dim": latent_config(rope_scaling=NO_MSCALE),
    "qk_norm = True": grouped_config(qk_norm=True),
    "attention_bias = True.*qwen3": grouped_config(
        model_type="qwen3", qk_norm=True, attention_bias=True
    ),
    "head_dim = 8.*qwen2": grouped_config(model_type="qwen2", qkv_bias=True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, reason):
    with pytest.raises(ConfigError, match=reason):
        written(build(REFUSED[reason]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weight_format", "value"),
    [("float16", 7e4), ("q8_0", 1e7), ("q4_0", 6e5), ("float32", float("nan"))],
)
def test_numbers_without_room_are_refused_by_tensor_and_nothing_is_left(
    tmp_path, weight_format, value
):
    model = build(FAMILIES["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(
        CheckpointError, match=r"blk\.1\.ffn_up\.weight holds (7e\+04|1e\+07|6e|nan)"
    ):
        written(model, tmp_path, weight_format)
    assert list(tmp_path.iterdir()) == []


def test_an_int8_model_is_refused(tmp_path):
    model = build(FAMILIES["llama"])
    quantize(model)
    with pytest.raises(ConfigError, match="INT8"):
        written(model, tmp_path)
