"""The native program equals the modules, and each row of it equals itself, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import examples
from tests.figures import seen
from tests.numerics.oracles import CONFIGS, seeds
from tests.paged import Sequences, logits_of, paged_cache
from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.engine.native_runner import NativeRunner, pages_of, step_tokens, write_program
from ziphius.engine.runner import TorchRunner
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.ops import native
from ziphius.ops.cache_rows import LARGEST, pack_rows

pytestmark = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
TOLERANCE = 1e-5
TOPK = {name: value for name, value in V3_EXPERTS.items() if not name.startswith(("n_g", "topk"))}
TOPK |= {"topk_method": "topk", "scoring_func": "softmax", "norm_topk_prob": False}
WINDOW = {"pattern": "sliding_window", "sliding_window": 5, "attention_sinks": 2}
ODD = {"hidden_size": 40, "intermediate_size": 70, "vocab_size": 101}
SHAPES = {
    "topk": latent_config(**TOPK),
    "no shared expert": latent_config(**V3_EXPERTS | {"n_shared_experts": 0}),
    "window": latent_config(**WINDOW),
    "grouped window": grouped_config(**WINDOW),
    "odd": latent_config(**ODD),
    "odd groups": grouped_config(**ODD, num_key_value_heads=3, head_dim=10),
    "many heads": latent_config(num_attention_heads=41, num_key_value_heads=41),
    "wide": latent_config(hidden_size=600, vocab_size=700),
}


def sequences_of(model: Model, lengths: list[int], *, empty: float = torch.nan) -> Sequences:
    blocks = sum(-(-length // 4) for length in lengths) + 3
    cache = paged_cache(model, blocks, 4, model.model.norm.weight.dtype, empty=empty)
    vocabulary = model.config.vocab_size
    return Sequences(cache, [random_ids(1, n, vocabulary, seed=n)[0] for n in lengths])


def assert_native_is_torch(model: Model, lengths: list[int], chunks: list[int] | None) -> None:
    # Modules multiply what they hide by 0, so it is no NaN.
    ours, theirs = sequences_of(model, lengths), sequences_of(model, lengths, empty=0.0)
    found = torch.cat(logits_of(NativeRunner(model, ours.cache, threads=1), ours, chunks))
    expected = torch.cat(logits_of(TorchRunner(model), theirs))
    assert found.isfinite().all()
    difference = (found - expected).norm() / expected.norm()
    assert seen("native program = modules, logits", difference, TOLERANCE)


@examples(60)
@given(config=st.one_of(*CONFIGS.values()), seed=seeds, data=st.data())
def test_any_model(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    chunks = data.draw(st.sampled_from([None, [1], [1, 3], [2, 7, 16]]))
    assert_native_is_torch(build(config, seed).eval(), lengths, chunks)


@pytest.mark.parametrize("name", SHAPES)
def test_further_shapes(name: str) -> None:
    assert_native_is_torch(build(SHAPES[name]).eval(), [33, 5, 21], [1, 7, 16])


def test_more_rows_than_a_block_and_more_keys_than_a_tile() -> None:
    assert_native_is_torch(build(get_preset("v3-tiny")).eval(), [150, 700], [400])


@pytest.mark.parametrize("preset", ["v2-tiny", "v2-lite-tiny", "qwen3-tiny"])
def test_bfloat16_weights_multiply_float32_rows(preset: str) -> None:
    """Held to modules in float32 with the same weights; a route may flip, so by the median row."""
    model = build(get_preset(preset)).bfloat16().eval()
    ours = sequences_of(model, [40, 9])
    found = torch.cat(logits_of(NativeRunner(model, ours.cache), ours, [1, 7]))
    model = model.float()
    theirs = sequences_of(model, [40, 9], empty=0.0)
    expected = torch.cat(logits_of(TorchRunner(model), theirs))
    error = ((found - expected).norm(dim=1) / expected.norm(dim=1)).median()
    assert seen("native program in bfloat16, median row", error, 2e-2)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.int8),
        (torch.bfloat16, torch.float8_e4m3fn),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "config",
    [
        get_preset("v3-tiny"),
        get_preset("v2-lite-tiny"),
        get_preset("qwen3-tiny"),
        get_preset("coder-tiny"),
        derive(get_preset("r1-distill-llama-tiny"), num_key_value_heads=1, **WINDOW),
    ],
    ids=["v3", "v2-lite", "qwen3", "a key head each", "llama, window"],
)
def test_a_row_is_the_same_bits_in_any_batch(
    config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    """Whatever is beside it, however its prompt is cut, wherever its blocks lie, in any team."""
    model = build(config).to(dtype).eval()
    lengths = [1100, 200, 37, 5]
    ids = [random_ids(1, n, config.vocab_size, seed=n)[0] for n in lengths]
    expected = None
    for seed, (chunks, block_size) in enumerate(
        [(None, 16), ([1, 7, 16], 8), ([64], 32), ([1, 333], 16), ([1100], 4)]
    ):
        cache = paged_cache(model, 2_000 // block_size, block_size, cache_dtype)
        runner = NativeRunner(model, cache, threads=1 + seed % 3)
        found = logits_of(runner, Sequences(cache, ids, seed), chunks, seed)
        expected = expected or found
        assert all(map(torch.equal, found, expected))


@examples(40)
@given(config=st.one_of(*CONFIGS.values()), seed=seeds)
def test_a_row_of_any_model_is_the_same_bits(config: ModelConfig, seed: int) -> None:
    """Narrow and odd widths take the tiles that wide ones do not."""
    model = build(config, seed).eval()
    whole, cut = sequences_of(model, [9, 4]), sequences_of(model, [9, 4])
    expected = logits_of(NativeRunner(model, whole.cache, threads=1), whole)
    found = logits_of(NativeRunner(model, cut.cache, threads=2), cut, [1, 2, 3], seed)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("cache_dtype", LARGEST, ids=str)
@pytest.mark.parametrize("name", ["v3-tiny", "v2-tiny", "qwen3-tiny", "latent", "grouped"])
def test_rows_of_8_bits_are_those_of_the_modules(name: str, cache_dtype: torch.dtype) -> None:
    """Bytes of the first layer are those that its rows in float32 become; logits are near."""
    shapes = {
        "latent": latent_config(kv_lora_rank=200, qk_rope_head_dim=6),
        "grouped": grouped_config(head_dim=10, num_key_value_heads=3, **ODD),
    }
    model = build(shapes.get(name) or get_preset(name)).eval()
    ids = [random_ids(1, length, model.config.vocab_size)[0] for length in (37, 150)]
    found = []
    for dtype in (torch.float32, cache_dtype):
        cache = paged_cache(model, 60, 4, dtype, empty=0.0)
        found.append((cache, logits_of(NativeRunner(model, cache), Sequences(cache, ids))))
    (whole, _), (rounded, ours) = found
    for part, layout, expected in zip(
        rounded.parts[0], rounded.layouts[0], whole.parts[0], strict=True
    ):
        assert torch.equal(part, pack_rows(expected, layout, cache_dtype))
    cache = paged_cache(model, 60, 4, cache_dtype, empty=0.0)
    theirs = torch.cat(logits_of(TorchRunner(model), Sequences(cache, ids)))
    error = ((torch.cat(ours) - theirs).norm(dim=1) / theirs.norm(dim=1)).median()
    # In later layers a sum that differs in its last bit may be rounded to the next number.
    assert seen(f"native program = modules, cache in {cache_dtype}, median row", error, 1e-3)


KEPT = {**SHAPES, "v3": get_preset("v3-tiny"), "qwen3": get_preset("qwen3-tiny")}


def kept_of(
    model: Model, lengths: list[int], cuts: list[list[tuple[int, int]]]
) -> tuple[Tensor, Tensor]:
    """Hidden states and streams of all tokens, sequence by sequence, however they are cut."""
    sequences, program = sequences_of(model, lengths), write_program(model)
    found: dict[int, list[tuple[Tensor, Tensor]]] = {row: [] for row in range(len(lengths))}
    for counts in cuts:
        batch = sequences.batch(counts)
        output = program.run(
            step_tokens(batch.input_ids_BT, batch.paged),
            pages_of(sequences.cache),
            threads=1 + len(counts) % 3,
            return_hidden=True,
            return_streams=True,
        )
        sizes = [count for _, count in counts]
        hidden = output.hidden_MD.clone().split(sizes)
        for (row, _), *parts in zip(
            counts, hidden, output.streams_XMD.split(sizes, 1), strict=True
        ):
            found[row].append(tuple(parts))
    parts = [part for row in found.values() for part in row]
    return torch.cat([hidden for hidden, _ in parts]), torch.cat([s for _, s in parts], dim=1)


@pytest.mark.parametrize("name", KEPT)
def test_streams_and_hidden_states_are_those_of_the_modules(name: str) -> None:
    model, lengths = build(KEPT[name]).eval(), [33, 5, 21]
    layers = model.model.layers[: model.config.num_hidden_layers]
    hidden_MD, streams_XMD = kept_of(model, lengths, [[(0, 33)], [(1, 5), (2, 21)]])
    cut = kept_of(model, lengths, [[(2, 7), (0, 1)], [(0, 32), (2, 14), (1, 2)], [(1, 3)]])
    assert torch.equal(cut[0], hidden_MD)
    assert torch.equal(cut[1], streams_XMD)
    expected: dict[int, list[Tensor]] = {place: [] for place in range(len(layers))}
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, x, out, at=place: expected[at].append(out[0]))
    sequences = sequences_of(model, lengths, empty=0.0)
    runner = TorchRunner(model, return_hidden=True)
    hidden = [runner(sequences.batch([(row, n)])).hidden_MD for row, n in enumerate(lengths)]
    pairs = [(hidden_MD, torch.cat(hidden))]
    pairs += [(streams_XMD[place], torch.cat(expected[place])) for place in expected]
    assert len(pairs) == 1 + len(streams_XMD)
    for found, wanted in pairs:
        difference = (found - wanted).norm() / wanted.norm()
        assert seen("native program = modules, streams", difference, TOLERANCE)
