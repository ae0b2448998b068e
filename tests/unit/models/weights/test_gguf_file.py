"""GGUF files, written by the gguf package, against the models they were written from."""

import sys

import numpy as np
import pytest
import torch

from tests.tiny import build, grouped_config, random_ids
from tests.unit.models.weights.files import rounded, write_gguf
from ziphius.core.errors import CheckpointError, ConfigError, MissingExtraError
from ziphius.models.config import LinearScaling, Llama3Scaling
from ziphius.models.rope import rope_frequencies
from ziphius.models.weights import load, read_model_config

IMPLIED = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
FAMILIES = pytest.mark.parametrize("family", IMPLIED)


def config_of(family="llama", **changes):
    """Rows of 64 numbers, so that blocks of 32 divide them."""
    fields = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "max_position_embeddings": 777,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "model_type": family,
    }
    return grouped_config(**(fields | IMPLIED[family] | changes))


@FAMILIES
@pytest.mark.parametrize("tied", [False, True])
def test_a_float32_file_gives_the_model_it_was_written_from(tmp_path, family, tied):
    model = build(config_of(family, tie_word_embeddings=tied))
    loaded = load(write_gguf(model, tmp_path / "model.gguf"))
    assert loaded.config == model.config
    assert read_model_config(tmp_path / "model.gguf") == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids_BT = random_ids(2, 9, 61)
    hidden_BTD = loaded(ids_BT).hidden_BTD
    assert torch.equal(loaded.logits(hidden_BTD), model.logits(model(ids_BT).hidden_BTD))
    assert not loaded.training


def test_biases_of_llama_attention_are_read_in_our_order(tmp_path):
    model = build(config_of(attention_bias=True))
    loaded = load(write_gguf(model, tmp_path / "model.gguf"))
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


EXACT = {"F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("kind", EXACT)
def test_half_formats_are_read_exactly(tmp_path, kind):
    model = rounded(build(config_of()), EXACT[kind])
    kinds = {"blk.1.attn_q.weight": kind, "token_embd.weight": kind, "blk.0.ffn_down.weight": kind}
    loaded = load(write_gguf(model, tmp_path / "model.gguf", kinds))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


# Largest error of a number in units of the largest number of its block of 32.
STEP = {"Q4_0": 1 / 8, "Q4_1": 1 / 14, "Q5_0": 1 / 16, "Q5_1": 1 / 30, "Q8_0": 1 / 220}


@pytest.mark.parametrize("kind", STEP)
def test_block_formats_are_read_within_their_step(tmp_path, kind):
    model = build(config_of())
    kinds = {"blk.1.attn_k.weight": kind, "token_embd.weight": kind, "blk.0.ffn_up.weight": kind}
    loaded = load(write_gguf(model, tmp_path / "model.gguf", kinds))
    changed = []
    for name, tensor in model.state_dict().items():
        error = (loaded.state_dict()[name] - tensor).abs()
        if error.any():
            changed.append(name)
            largest = tensor.abs().unflatten(1, (-1, 32)).amax(-1)
            assert (error.unflatten(1, (-1, 32)).amax(-1) <= largest * STEP[kind]).all(), name
    assert len(changed) == len(kinds)


def q6_k_block(generator):
    """One block of 256 numbers as llama.cpp lays it out: 4 low bits, 2 high bits, scales, scale."""
    quants = generator.integers(0, 64, 256, dtype=np.uint8)
    scales = generator.integers(-100, 100, 16, dtype=np.int8)
    half = quants.reshape(2, 4, 32)
    low, high = half & 15, half >> 4
    packed_low = np.concatenate([low[:, 0] | low[:, 2] << 4, low[:, 1] | low[:, 3] << 4], axis=1)
    packed_high = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    values = 0.25 * scales.repeat(16).astype(np.float32) * (quants.astype(np.float32) - 32)
    data = packed_low.tobytes() + packed_high.tobytes() + scales.tobytes()
    return data + np.float16(0.25).tobytes(), values


def q4_k_block(generator, bits=4):
    """One block of 256: two scales of 8 groups of 32, each with a 6-bit factor and offset."""
    quants = generator.integers(0, 2**bits, (8, 32), dtype=np.uint8)
    factors, offsets = generator.integers(0, 64, (2, 8), dtype=np.uint8)
    packed = np.zeros(12, np.uint8)
    packed[:4] = factors[:4] | (factors[4:] >> 4) << 6
    packed[4:8] = offsets[:4] | (offsets[4:] >> 4) << 6
    packed[8:] = factors[4:] & 15 | (offsets[4:] & 15) << 4
    low = quants & 15
    body = (low[0::2] | low[1::2] << 4).tobytes()
    if bits == 5:
        high = np.zeros(32, np.uint8)
        for group in range(8):
            high |= (quants[group] >> 4) << group
        body = high.tobytes() + body
    values = 0.5 * factors[:, None].astype(np.float32) * quants - 0.25 * offsets[:, None]
    scales = np.array([0.5, 0.25], np.float16).tobytes()
    return scales + packed.tobytes() + body, values.astype(np.float32).reshape(-1)


def two_bits(quants):
    """Pack 256 numbers of 2 bits: a byte holds those that lie 32 apart in a half of 128."""
    halves = quants.reshape(2, 4, 32)
    packed = halves[:, 0] | halves[:, 1] << 2 | halves[:, 2] << 4 | halves[:, 3] << 6
    return packed.astype(np.uint8).tobytes()


def q2_k_block(generator):
    """One block of 256: 16 groups of 16, each with a 4-bit factor and a 4-bit offset."""
    quants = generator.integers(0, 4, 256, dtype=np.uint8)
    factors, offsets = generator.integers(0, 16, (2, 16), dtype=np.uint8)
    values = 0.5 * (factors.repeat(16).astype(np.float32) * quants) - 0.25 * offsets.repeat(16)
    scales = np.array([0.5, 0.25], np.float16).tobytes()
    data = (factors | offsets << 4).tobytes() + two_bits(quants) + scales
    return data, values.astype(np.float32)


def q3_k_block(generator):
    """One block of 256: 2 low bits, a plane of third bits, 16 factors of 6 bits for 16 each."""
    quants = generator.integers(0, 8, 256, dtype=np.uint8)
    factors = generator.integers(0, 64, 16, dtype=np.uint8)
    third = np.zeros(32, np.uint8)
    for group, bits in enumerate((quants >> 2).reshape(8, 32)):
        third |= bits << group
    low = (factors[:8] & 15) | (factors[8:] & 15) << 4
    high = np.zeros(4, np.uint8)
    for quarter, bits in enumerate((factors >> 4).reshape(4, 4)):
        high |= bits << 2 * quarter
    scale = (factors.astype(np.float32) - 32).repeat(16)
    values = 0.5 * scale * (quants.astype(np.float32) - 4)
    data = third.tobytes() + two_bits(quants & 3) + low.tobytes() + high.tobytes()
    return data + np.float16(0.5).tobytes(), values


# The 16 steps of llama.cpp's non-linear format (ggml-common.h, kvalues_iq4nl).
IQ4_STEPS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def nibbles(quants):
    """Pack rows of 32 numbers of 4 bits: the second half of a row in the high bits."""
    return (quants[:, :16] | quants[:, 16:] << 4).tobytes()


def iq4_nl_block(generator):
    """Eight blocks of 32 with a scale each."""
    quants = generator.integers(0, 16, (8, 32), dtype=np.uint8)
    data = b"".join(np.float16(0.5).tobytes() + nibbles(row[None]) for row in quants)
    return data, 0.5 * IQ4_STEPS[quants].reshape(-1)


def iq4_xs_block(generator):
    """One block of 256: 8 groups of 32 with 6-bit factors, 4 low bits and 2 high ones apart."""
    quants = generator.integers(0, 16, (8, 32), dtype=np.uint8)
    factors = generator.integers(0, 64, 8, dtype=np.uint8)
    high = sum(int(factor >> 4) << 2 * group for group, factor in enumerate(factors))
    low = (factors[0::2] & 15) | (factors[1::2] & 15) << 4
    scale = factors.astype(np.float32)[:, None] - 32
    data = np.float16(0.5).tobytes() + np.uint16(high).tobytes() + low.tobytes() + nibbles(quants)
    return data, (0.5 * scale * IQ4_STEPS[quants]).reshape(-1)


BLOCKS = {
    "Q2_K": q2_k_block,
    "Q3_K": q3_k_block,
    "Q4_K": q4_k_block,
    "Q5_K": lambda generator: q4_k_block(generator, bits=5),
    "Q6_K": q6_k_block,
    "IQ4_NL": iq4_nl_block,
    "IQ4_XS": iq4_xs_block,
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_other_formats_are_read_as_llama_cpp_defines_them(tmp_path, kind):
    model = build(config_of(intermediate_size=256))
    generator = np.random.default_rng(0)
    rows = [BLOCKS[kind](generator) for _ in range(64)]
    name = "blk.1.ffn_down.weight"
    raw = {name: np.stack([np.frombuffer(data, np.uint8) for data, _ in rows])}
    loaded = load(write_gguf(model, tmp_path / "model.gguf", {name: kind}, raw=raw))
    expected = torch.from_numpy(np.stack([values for _, values in rows]))
    assert torch.equal(loaded.model.layers[1].mlp.down_proj.weight, expected)


@pytest.mark.parametrize("kind", ["IQ3_S", "TQ1_0"])
def test_a_format_that_is_not_read_is_named(tmp_path, kind):
    import gguf

    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    name = "blk.1.ffn_down.weight"
    raw = {name: np.zeros((64, 256 // numbers * size), np.uint8)}
    model = build(config_of(intermediate_size=256))
    file = write_gguf(model, tmp_path / "model.gguf", {name: kind}, raw=raw)
    with pytest.raises(CheckpointError, match=rf"stores {name} as {kind}; known are .*IQ4_XS"):
        load(file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_take_the_dtype_asked_for(tmp_path, dtype):
    file = write_gguf(build(config_of()), tmp_path / "model.gguf")
    assert {tensor.dtype for tensor in load(file, dtype=dtype).parameters()} == {dtype}
    assert {tensor.dtype for tensor in load(file).parameters()} == {torch.float32}


def test_linear_scaling_is_read(tmp_path):
    config = config_of(rope_scaling=LinearScaling(factor=4.0))
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = write_gguf(build(config), tmp_path / "model.gguf", metadata=metadata)
    assert read_model_config(file) == config


def factors_of(scaling, config):
    plain = rope_frequencies(config.head_dim, config.rope_theta, None)
    return (plain / rope_frequencies(config.head_dim, config.rope_theta, scaling)).numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_recognised_in_its_factors(tmp_path, factor):
    scaling = Llama3Scaling(
        factor=factor,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    config = config_of(rope_scaling=scaling, head_dim=32, rope_theta=500_000.0)
    extra = {"rope_freqs.weight": factors_of(scaling, config)}
    assert sorted(extra["rope_freqs.weight"])[0] == 1
    file = write_gguf(build(config), tmp_path / "model.gguf", extra=extra)
    assert load(file).config == config
    assert read_model_config(file) == config


@pytest.mark.parametrize(("stated", "original"), [(256, 256), (4096, 8192)])
def test_the_factors_decide_what_context_they_were_made_for(tmp_path, stated, original):
    scaling = Llama3Scaling(
        factor=8.0,
        original_max_position_embeddings=original,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    config = config_of(rope_scaling=scaling, head_dim=32, rope_theta=500_000.0)
    extra = {"rope_freqs.weight": factors_of(scaling, config)}
    metadata = {"llama.rope.scaling.original_context_length": stated}
    file = write_gguf(build(config), tmp_path / "model.gguf", extra=extra, metadata=metadata)
    assert load(file).config == config


def test_factors_of_one_are_no_scaling(tmp_path):
    config = config_of()
    extra = {"rope_freqs.weight": np.ones(4, np.float32)}
    file = write_gguf(build(config), tmp_path / "model.gguf", extra=extra)
    assert load(file).config == config


def test_other_factors_are_refused(tmp_path):
    extra = {"rope_freqs.weight": np.array([1, 2, 3, 8], np.float32)}
    file = write_gguf(build(config_of()), tmp_path / "model.gguf", extra=extra)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight that are not Llama 3\.1's"):
        load(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 512),
        ("llama.rope.dimension_count", 4),
        ("llama.attention.value_length", 16),
        ("llama.attention.head_count_kv", [2, 1]),
        ("llama.attention.layer_norm_rms_epsilon", None),
        ("llama.block_count", "two"),
        ("llama.block_count", True),
        ("llama.attention.head_count", 0),
        ("llama.block_count", 4_000_000_000),
        ("tokenizer.ggml.bos_token_id", 61),
        ("llama.rope.freq_base", float("nan")),
    ],
)
def test_metadata_that_is_not_understood_is_refused_by_name(tmp_path, key, value):
    file = write_gguf(build(config_of()), tmp_path / "model.gguf", metadata={key: value})
    last = {"block_count": "num_hidden_layers", "head_count": "num_attention_heads"}.get(
        key.rsplit(".", 1)[1], key.rsplit(".", 1)[1]
    )
    names = "|".join((key, last, "bos_token_id", "rope_theta"))
    with pytest.raises(CheckpointError, match=rf"model\.gguf.*({names})"):
        load(file)


def test_linear_scaling_beside_factors_is_refused(tmp_path):
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    extra = {"rope_freqs.weight": np.array([1, 1, 8, 8], np.float32)}
    file = write_gguf(build(config_of()), tmp_path / "a.gguf", metadata=metadata, extra=extra)
    with pytest.raises(CheckpointError, match=r"both linear scaling and rope_freqs\.weight"):
        load(file)


def test_a_head_width_that_lies_is_refused_before_anything_of_its_size_is_made(tmp_path):
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    metadata = {f"llama.{key}": 2**30 for key in keys}
    extra = {"rope_freqs.weight": np.array([1, 1, 8, 8], np.float32)}
    file = write_gguf(build(config_of()), tmp_path / "a.gguf", metadata=metadata, extra=extra)
    with pytest.raises(CheckpointError, match=r"\(4,\) rope_freqs\.weight for heads of 1073741824"):
        load(file)


def test_far_more_parameters_than_bytes_are_refused(tmp_path):
    file = write_gguf(build(config_of()), tmp_path / "a.gguf", metadata={"llama.block_count": 512})
    with pytest.raises(CheckpointError, match=r"a\.gguf describes \d+ parameters, too many"):
        load(file)


def test_missing_left_over_and_misshapen_tensors_are_refused(tmp_path):
    model = build(config_of())
    extra = {"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"a\.gguf holds blk\.0\.ffn_gate_inp\.weight"):
        load(write_gguf(model, tmp_path / "a.gguf", extra=extra))
    more = {"llama.block_count": 3}
    with pytest.raises(CheckpointError, match=r"b\.gguf lacks blk\.2\.\S+ and 8 more"):
        load(write_gguf(model, tmp_path / "b.gguf", metadata=more))
    wider = {"llama.feed_forward_length": 128}
    with pytest.raises(CheckpointError, match=r"c\.gguf holds blk\.0\.ffn_\S+ of shape"):
        load(write_gguf(model, tmp_path / "c.gguf", metadata=wider))


def test_not_finite_weights_are_found_on_request(tmp_path):
    model = build(config_of())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    file = write_gguf(model, tmp_path / "model.gguf")
    load(file)
    with pytest.raises(CheckpointError, match=r"model\.gguf holds NaN.*blk\.1\.ffn_up\.weight"):
        load(file, check_finite=True)


def test_without_the_gguf_package_the_extra_is_named(tmp_path, monkeypatch):
    file = write_gguf(build(config_of()), tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ziphius\[quant\]'"):
        load(file)


def test_drop_mtp_has_no_effect_on_gguf(tmp_path):
    file = write_gguf(build(config_of()), tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="drop_mtp has no effect"):
        load(file, drop_mtp=True)
