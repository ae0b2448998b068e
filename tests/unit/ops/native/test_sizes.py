"""Every native kernel against its PyTorch twin on random sizes, among them odd ones and none.

A tensor that is made here without being filled begins as NaN, so that what a kernel leaves out is
seen. `make sanitize` runs this file under ASan and UBSan, on more examples.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import examples
from tests.numerics.oracles import CONFIGS
from tests.paged import Sequences, logits_of, paged_cache
from tests.tiny import build, random_ids
from tests.twins import BOUNDS, assert_equal_within, draw
from ziphius.engine.adapters import MixedTorchRunner
from ziphius.engine.drafts.mtp import NativeMtpRunner, TorchMtpRunner
from ziphius.engine.drafts.slots import slot_batch
from ziphius.engine.native_runner import NativeRunner, pages_of, step_tokens, write_program
from ziphius.engine.runner import Runner, TorchRunner
from ziphius.models.cache import PagedCache
from ziphius.models.lora import projections
from ziphius.models.lora_mixed import Adapter, LowRank
from ziphius.models.model import Model
from ziphius.models.presets import derive
from ziphius.ops import logprobs, native
from ziphius.ops.attention import attend
from ziphius.ops.digest import tensor_digest
from ziphius.ops.experts import routed_experts
from ziphius.ops.feed_forward import feed_forward
from ziphius.ops.int8 import grouped_int8_linear, int8_linear, quantize_rows
from ziphius.ops.latent_heads import key_value_heads, query_heads
from ziphius.ops.linear import linear
from ziphius.ops.logprobs import cross_entropy_and_squares, score_rows
from ziphius.ops.native import (
    attention,
    dense,
    digest,
    experts,
    heads,
    int8,
    pointwise,
    program,
    routing,
    sampling,
)
from ziphius.ops.native.binding import Kernel
from ziphius.ops.native.program import StepExtras
from ziphius.ops.rms_norm import add_rms_norm, rms_norm
from ziphius.ops.rotary import rotate_halves, rotate_pairs
from ziphius.ops.sampling import RowSettings, sample_rows
from ziphius.ops.swiglu import swiglu
from ziphius.ops.top_experts import top_experts

pytestmark = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
EXAMPLES = int(os.environ.get("ZIPHIUS_FUZZ_EXAMPLES", "12"))
KERNELS = {
    kernel.name: kernel
    for module in (
        attention,
        dense,
        digest,
        experts,
        heads,
        int8,
        pointwise,
        program,
        routing,
        sampling,
    )
    for kernel in vars(module).values()
    if isinstance(kernel, Kernel)
}
# Blocks and panels of the kernels are 16, 32, 64 and 128 long.
ROWS = st.one_of(st.integers(0, 4), st.sampled_from([31, 32, 33, 63, 64, 65, 127, 128, 129, 150]))
WIDTHS = st.one_of(st.integers(0, 5), st.integers(6, 70), st.sampled_from([16, 32, 64, 96]))
WIDE = WIDTHS.filter(bool)
FEW = st.integers(0, 3)
Case = tuple[Callable[..., Any], list[Tensor]]


class Sizes:
    """What a case draws: sizes, and tensors of the dtype under test."""

    def __init__(self, data: st.DataObject, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype

    def adapter(self, model: Model) -> Adapter:
        """Draw matrices of any rank for some of a model's projections."""
        found = {}
        for name, layer in projections(model):
            rank = self.data.draw(st.integers(0, min(40, *layer.weight.shape)))
            if rank:
                down = self.tensor(rank, layer.in_features, dtype=torch.float32)
                up = self.tensor(layer.out_features, rank, dtype=torch.float32)
                found[name] = LowRank(down, up, 0.1 / rank)
        return found

    def __call__(self, *kinds: st.SearchStrategy[int]) -> list[int]:
        return [self.data.draw(kind) for kind in kinds]

    def one_of(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return draw(*shape, dtype=dtype or self.dtype, seed=self.data.draw(st.integers(0, 9)))


def norm(sizes: Sizes) -> Case:
    lead, rows, width = sizes(FEW, ROWS, WIDE)
    inputs = [sizes.tensor(lead, rows, width), sizes.tensor(width, dtype=torch.float32)]
    return lambda x, weight: rms_norm(x, weight, 1e-3), inputs


def norm_of_a_sum(sizes: Sizes) -> Case:
    rows, width = sizes(ROWS, WIDE)
    inputs = [sizes.tensor(rows, width), sizes.tensor(rows, width), sizes.tensor(width)]
    return lambda x, update, weight: add_rms_norm(x, update, weight, 1e-3), inputs


def gated(sizes: Sizes) -> Case:
    shape = sizes(FEW, ROWS, WIDTHS)
    return swiglu, [sizes.tensor(*shape), sizes.tensor(*shape)]


def projection(sizes: Sizes) -> Case:
    lead, rows, inner, outer = sizes(FEW, ROWS, WIDTHS, WIDTHS)
    return linear, [sizes.tensor(lead, rows, inner), sizes.tensor(outer, inner)]


def layer(sizes: Sizes) -> Case:
    rows, hidden, width = sizes(ROWS, WIDTHS, WIDTHS)
    shapes = [(rows, hidden), (width, hidden), (width, hidden), (hidden, width)]
    return feed_forward, [sizes.tensor(*shape) / 4 for shape in shapes]


def losses(sizes: Sizes) -> Case:
    rows, hidden, vocabulary = sizes(ROWS, WIDTHS, WIDE)
    targets_X = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(rows))
    inputs = [sizes.tensor(rows, hidden) / 4, sizes.tensor(vocabulary, hidden)]
    return lambda h, head: cross_entropy_and_squares(h, head, targets_X), inputs


def through_experts(sizes: Sizes) -> Case:
    tokens, hidden, width, count = sizes(ROWS, WIDTHS, WIDTHS, st.integers(1, 6))
    [per_token] = sizes(st.integers(1, count))
    generator = torch.Generator().manual_seed(tokens)
    experts_MK = torch.rand(tokens, count, generator=generator).topk(per_token).indices
    share = sizes.one_of(0.0, 0.3, 1.0)
    dropped_MK = torch.rand(tokens, per_token, generator=generator) < share
    experts_MK = torch.where(dropped_MK, count, experts_MK)
    inputs = [
        sizes.tensor(tokens, hidden),
        sizes.tensor(tokens, per_token, dtype=torch.float32),
        sizes.tensor(count, 2 * width, hidden) / 4,
        sizes.tensor(count, hidden, width) / 4,
    ]
    if sizes.one_of(True, False):
        inputs.append(sizes.tensor(tokens, hidden))
    return lambda x, *rest: routed_experts(x, experts_MK, *rest), inputs


def angles(sizes: Sizes, batch: int, tokens: int, pairs: int) -> tuple[Tensor, Tensor]:
    angle_BTr = sizes.tensor(sizes.one_of(1, batch), tokens, pairs, dtype=torch.float32)
    return angle_BTr.cos(), angle_BTr.sin()


def rotation(sizes: Sizes) -> Case:
    batch, tokens, count, pairs = sizes(FEW, ROWS, FEW, st.integers(0, 17))
    before, after = sizes(FEW, FEW)
    cos_BTr, sin_BTr = angles(sizes, batch, tokens, pairs)
    rotate = sizes.one_of(rotate_pairs, rotate_halves)

    def rotated(x_BTX: Tensor) -> Tensor:
        heads_BTX = x_BTX[..., before : x_BTX.shape[-1] - after]
        return rotate(heads_BTX.unflatten(-1, (count, 2 * pairs)), cos_BTr, sin_BTr)

    return rotated, [sizes.tensor(batch, tokens, before + count * 2 * pairs + after)]


def queries(sizes: Sizes) -> Case:
    batch, tokens, count, nope, pairs = sizes(FEW, ROWS, FEW, WIDTHS, st.integers(0, 9))
    cos_BTr, sin_BTr = angles(sizes, batch, tokens, pairs)
    inputs = [sizes.tensor(batch, tokens, count, nope + 2 * pairs)]
    return lambda x: query_heads(x, cos_BTr, sin_BTr), inputs


def keys_and_values(sizes: Sizes) -> Case:
    batch, tokens, count, nope, rope, value = sizes(FEW, ROWS, FEW, WIDTHS, FEW, WIDTHS)
    inputs = [sizes.tensor(batch, tokens, count, nope + value), sizes.tensor(batch, tokens, rope)]
    return lambda x, shared: key_value_heads(x, shared, nope), inputs


def softmax_attention(sizes: Sizes) -> Case:
    batch, groups, queries, keys, value = sizes(FEW, st.integers(1, 2), ROWS, ROWS, WIDE)
    [more] = sizes(st.integers(0, 9))
    shared_by = sizes.one_of(1, 2)
    kind = sizes.one_of("causal", "full", "mask")
    if kind == "causal":
        keys = queries
    mask_BTS = None
    if kind == "mask":
        mask_BTS = sizes.tensor(sizes.one_of(1, batch), queries, keys) > sizes.one_of(-0.5, 1.5)
    inputs = [
        sizes.tensor(batch, groups * shared_by, queries, value + more),
        sizes.tensor(batch, groups, keys, value + more),
        sizes.tensor(batch, groups, keys, value),
    ]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        causal = kind == "causal"
        return attend(query, key, value, mask_BTS=mask_BTS, is_causal=causal, scale=0.2)

    return attention, inputs


def choice_of_experts(sizes: Sizes) -> Case:
    tokens, groups, size = sizes(ROWS, st.integers(1, 4), st.integers(1, 6))
    top_groups, judges = sizes(st.integers(1, groups), st.integers(1, size))
    [top_k] = sizes(st.integers(0, top_groups * size))
    scores_ME = sizes.tensor(tokens, groups * size, dtype=torch.float32)
    options = {"groups": groups, "top_groups": top_groups, "judges": judges}
    # The choice has no gradient; the factor, which has one, lets it through.
    return (
        lambda weight: weight * top_experts(scores_ME, top_k, **options),
        [sizes.tensor(tokens, top_k, dtype=torch.float32)],
    )


def product_in_int8(sizes: Sizes) -> Case:
    rows, outputs, inputs = sizes(ROWS, WIDTHS, WIDE)
    weight, scale = quantize_rows(sizes.tensor(outputs, inputs))
    bias = sizes.one_of(None, sizes.tensor(outputs))
    x = sizes.tensor(rows, inputs)
    factor = sizes.tensor(rows, outputs, dtype=torch.float32)  # has a gradient; INT8 has none
    return lambda factor: factor * int8_linear(x, weight, scale, bias), [factor]


def products_in_int8(sizes: Sizes) -> Case:
    counts = sizes.data.draw(st.lists(ROWS, min_size=0, max_size=4))
    outputs, inputs = sizes(WIDTHS, WIDE)
    weight, scale = quantize_rows(sizes.tensor(len(counts), outputs, inputs))
    starts = torch.tensor([0, *counts]).cumsum(0)
    x = sizes.tensor(sum(counts), inputs)
    factor = sizes.tensor(sum(counts), outputs, dtype=torch.float32)
    return lambda factor: factor * grouped_int8_linear(x, starts, weight, scale), [factor]


def next_tokens(sizes: Sizes) -> Case:
    rows, width = sizes(ROWS, WIDE)
    [limit] = sizes(st.integers(1, width))
    generator = torch.Generator().manual_seed(rows + width)
    temperatures_L = torch.tensor([0.0, 1.0, 0.6, 1.7])[torch.arange(rows) % 4]
    settings = RowSettings(
        torch.randint(2**62, (rows,), generator=generator),
        temperatures_L,
        torch.randint(sizes.one_of(1, 4, 90), (rows,), generator=generator),
        torch.rand(rows, generator=generator, dtype=torch.float64).clamp(min=0.5) * 2 % 1 + 1e-9,
        torch.rand(rows, generator=generator) * sizes.one_of(0, 0.3),
    )
    logits_LW = sizes.tensor(rows, width, dtype=torch.float32) * 3
    factor = sizes.tensor(rows, dtype=torch.float32)  # has a gradient; a draw has none

    def drawn(factor: Tensor) -> tuple[Tensor, ...]:
        draws = sample_rows(logits_LW, settings, torch.arange(rows), limit=limit)
        scores = score_rows(logits_LW, draws.ids_L, temperatures_L, limit=limit)
        assert [x.tolist() for x in scores] == [x.tolist() for x in draws[1:]]
        return factor * draws.ids_L, factor * draws.logprobs_L, factor * draws.normalizers_L

    return drawn, [factor]


def digest_of_bits(sizes: Sizes) -> Case:
    x, factor = sizes.tensor(*sizes(ROWS, WIDTHS)), sizes.tensor(1, dtype=torch.float32)

    def parts(factor: Tensor) -> Tensor:
        found = tensor_digest(x)  # 64 bits, in parts that float32 holds
        return factor * torch.tensor([found >> shift & 0xFFFF for shift in (0, 16, 32, 48)])

    return parts, [factor]


def assert_replayed(model: Model, sequences: Sequences, threads: int) -> None:
    """What gates chose, taken from outside, changes no bit of any stream."""
    whole = sequences.batch(list(enumerate(sequences.left)))
    run = partial(
        write_program(model).run,
        step_tokens(whole.input_ids_BT, whole.paged),
        pages_of(sequences.cache),
        threads=threads,
        return_streams=True,
    )
    chosen = run(record_routes=True)
    again = run(StepExtras(replayed_MYK=chosen.routes_MYK))
    assert torch.equal(again.streams_XMD, chosen.streams_XMD)


def whole_model(sizes: Sizes) -> Case:
    """A program of any config, over sequences cut and mixed at random."""
    config = sizes.data.draw(sizes.one_of(*CONFIGS.values()))
    hidden, vocabulary = sizes(st.integers(8, 130), st.integers(2, 140))
    config = derive(config, hidden_size=hidden, vocab_size=vocabulary)
    model = build(config, seed=sizes.one_of(0, 1)).to(sizes.dtype).eval()
    lengths = sizes.data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    lengths[0] += sizes.one_of(0, 0, 0, 100, 530)
    ids = [random_ids(1, length, vocabulary, seed=length)[0] for length in lengths]
    block_size, threads = sizes.one_of(1, 3, 16), sizes.one_of(1, 2, 3)
    cache_dtype = sizes.one_of(torch.float32, sizes.dtype)
    chunks = sizes.one_of(None, [1, 5], [7, 16], [200])
    returns_hidden = sizes.one_of(False, True)
    names = [sizes.one_of("", "a", "b") for _ in lengths] if sizes.one_of(False, True) else None
    adapters = {name: sizes.adapter(model) for name in ("a", "b")} if names else {}

    def logits(runner: Callable[[PagedCache], Runner], dtype: torch.dtype, empty: float) -> Tensor:
        blocks = sum(-(-length // block_size) for length in lengths) + 1
        # What nobody may read is NaN for the program; modules multiply it by 0.
        cache = paged_cache(model, blocks, block_size, dtype, empty=empty)
        sequences = Sequences(cache, ids, adapters=names)
        run = runner(cache)
        with_adapters = (lambda batch: run(batch, adapters)) if names else run
        return torch.cat(logits_of(with_adapters, sequences, chunks, threads))

    def weighed(factor: Tensor) -> Tensor:
        if native.serves():
            whole = paged_cache(model, sum(lengths), 1, cache_dtype)
            assert_replayed(model, Sequences(whole, ids), threads)
            ours = partial(
                NativeRunner,
                model,
                threads=threads,
                return_hidden=returns_hidden,
                takes_adapters=names is not None,
            )
            found = logits(ours, cache_dtype, nan)
            for rounded in (torch.int8, torch.float8_e4m3fn):
                assert logits(ours, rounded, nan).isfinite().all()
            # Rounded rows of a cache may send a token to another expert, and nothing is alike then.
            if cache_dtype == torch.float32 or not config.n_routed_experts:
                return factor * found
        # Modules in float32 with the same weights.
        with torch.autocast("cpu", enabled=False):
            theirs = deepcopy(model).float()
            runner = TorchRunner if names is None else MixedTorchRunner
            return factor * logits(lambda cache: runner(theirs), torch.float32, 0.0)

    return weighed, [sizes.tensor(vocabulary, dtype=torch.float32)]


def mtp_layer(sizes: Sizes) -> Case:
    """A program of an MTP layer: tokens of some sequences, then one more of each."""
    config = sizes.data.draw(sizes.one_of(*CONFIGS.values()))
    hidden, vocabulary = sizes(st.integers(8, 70), st.integers(2, 140))
    config = derive(config, hidden_size=hidden, vocab_size=vocabulary, num_nextn_predict_layers=1)
    model = build(config, seed=sizes.one_of(0, 1)).to(sizes.dtype).eval()
    counts = sizes.data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    before = sizes.one_of(0, 3)  # of each text no row was kept of so many tokens
    slots = torch.randperm(sum(counts) + len(counts) + 2).numpy()

    def predicted(kind: str, theirs: Model) -> tuple[Tensor, Tensor]:
        dtype = sizes.dtype if kind == "native" and not config.n_routed_experts else torch.float32
        empty = nan if kind == "native" else 0.0
        cache = paged_cache(theirs, len(slots), 1, dtype, empty=empty)
        runner = NativeMtpRunner(theirs, cache) if kind == "native" else TorchMtpRunner(theirs)
        logits, states, ends = [], [], np.cumsum([count + 1 for count in counts])
        for new in (0, 1):
            tables = [
                slots[end - count - 1 : end - 1 + new]
                for end, count in zip(ends, counts, strict=True)
            ]
            sizes_Z = [1] * len(counts) if new else counts
            places = [
                np.arange(len(table) - count, len(table)) + before
                for table, count in zip(tables, sizes_Z, strict=True)
            ]
            ids = [int(place) % vocabulary for own in places for place in own]
            batch = slot_batch(
                cache, ids, tables, sizes_Z, torch.device("cpu"), np.concatenate(places)
            )
            generator = torch.Generator().manual_seed(new)
            hidden_MD = torch.randn(len(ids), hidden, generator=generator)
            logits_LW, hidden_LD = runner(batch, hidden_MD)
            logits.append(logits_LW.clone())
            states.append(hidden_LD)
        return torch.cat(logits), torch.cat(states)

    def weighed(factor_W: Tensor, factor_D: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            if native.serves():
                logits_LW, hidden_LD = predicted("native", model)
            else:
                logits_LW, hidden_LD = predicted("modules", deepcopy(model).float())
        return factor_W * logits_LW, factor_D * hidden_LD

    return weighed, [sizes.tensor(width, dtype=torch.float32) for width in (vocabulary, hidden)]


ROUTING = {"sort_pairs", "combine"}
CASES: dict[Callable[[Sizes], Case], set[str]] = {
    norm: {"rms_norm", "rms_norm_backward"},
    norm_of_a_sum: {"rms_norm", "rms_norm_backward"},
    gated: {"swiglu", "swiglu_backward"},
    projection: {"dense", "dense_gradient"},
    layer: {"dense", "dense_gradient", "swiglu", "swiglu_backward"},
    losses: {"cross_entropy"},
    through_experts: {"experts_forward", "experts_backward", *ROUTING},
    rotation: {"rotate"},
    queries: {"latent_queries"},
    keys_and_values: {"latent_keys", "latent_keys_backward"},
    softmax_attention: {"attention_forward", "attention_backward"},
    choice_of_experts: {"top_experts"},
    digest_of_bits: {"digest"},
    product_in_int8: {"int8_linear"},
    products_in_int8: {"int8_linear"},
    next_tokens: {"sample", "score"},
    whole_model: {"pack_weight", "program_run"},
    mtp_layer: {"pack_weight", "program_run"},
}
"""Functions that draw an example, and the kernels that examples of it run."""


@pytest.fixture(autouse=True)
def _unfilled_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names: set[str] = set()
    find = Kernel.of

    def noted(self: Kernel, *dtypes: torch.dtype) -> Callable[..., int]:
        names.add(self.name)
        return find(self, *dtypes)

    monkeypatch.setattr(Kernel, "of", noted)
    return names


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_any_size(case: Callable[[Sizes], Case], mode: str, called: set[str]) -> None:
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    # Of tensors of one or two numbers roundings do not average out.
    bound = 3 * BOUNDS[torch.float32 if mode == "float32" else torch.bfloat16]

    @examples(EXAMPLES)
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        function, inputs = case(Sizes(data, dtype))
        context = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext()

        def computed(*leaves: Tensor) -> Any:
            with context:
                return function(*leaves)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logprobs, "LOGITS_BLOCK", 2_000)
            assert_equal_within(patch, computed, inputs, bound, spread=1.0)

    compare()
    expected = CASES[case] - ({"dense_gradient"} if mode == "float32" else set())
    assert called >= expected


def test_every_kernel_is_among_the_cases() -> None:
    assert set().union(*CASES.values()) == KERNELS.keys()
