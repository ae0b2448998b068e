"""Every native kernel against its PyTorch twin, in float32 and bfloat16, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.twins import BOUNDS, assert_equal_within, draw
from ziphius.ops import native
from ziphius.ops.attention import attend
from ziphius.ops.experts import routed_experts
from ziphius.ops.feed_forward import feed_forward
from ziphius.ops.latent_heads import key_value_heads, query_heads
from ziphius.ops.linear import linear, project, project_back, weight_gradient
from ziphius.ops.logprobs import cross_entropy_and_squares, summed_cross_entropy
from ziphius.ops.rms_norm import add_rms_norm, rms_norm
from ziphius.ops.rotary import rotate_halves, rotate_pairs
from ziphius.ops.swiglu import swiglu
from ziphius.ops.top_experts import top_experts

pytestmark = pytest.mark.skipif(
    not native.serves(torch.zeros(1)), reason=f"native kernels {native.status()}"
)
DTYPES = pytest.mark.parametrize("dtype", BOUNDS)


@DTYPES
def test_rms_norm(monkeypatch, dtype):
    inputs = [3 * draw(5, 7, 96, dtype=dtype), draw(96, seed=1)]
    assert_equal_within(monkeypatch, lambda x, w: rms_norm(x, w, 1e-6), inputs, BOUNDS[dtype])


def test_rms_norm_under_autocast_rounds_once(monkeypatch):
    def normed(x, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return rms_norm(x, weight, 1e-5)

    inputs = [draw(9, 64), draw(64, seed=1)]
    with torch.autocast("cpu", torch.bfloat16):
        assert normed(*inputs).dtype == torch.bfloat16
    assert_equal_within(monkeypatch, normed, inputs, 1e-3)


@DTYPES
def test_add_rms_norm(monkeypatch, dtype):
    inputs = [draw(5, 7, 96, dtype=dtype, seed=i) for i in range(2)] + [draw(96, seed=2)]
    assert_equal_within(
        monkeypatch, lambda x, y, w: add_rms_norm(x, y, w, 1e-6), inputs, BOUNDS[dtype]
    )


def test_add_rms_norm_under_autocast_keeps_the_stream_in_float32(monkeypatch):
    def summed(stream, update, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return add_rms_norm(stream, update, weight, 1e-5)

    inputs = [draw(9, 64), draw(9, 64, dtype=torch.bfloat16, seed=1), draw(64, seed=2)]
    stream, normed = summed(*inputs)
    assert (stream.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    assert_equal_within(monkeypatch, summed, inputs, 5e-3)


@DTYPES
def test_swiglu(monkeypatch, dtype):
    inputs = [4 * draw(3, 11, 40, dtype=dtype), draw(3, 11, 40, dtype=dtype, seed=1)]
    assert_equal_within(monkeypatch, swiglu, inputs, BOUNDS[dtype])


def test_a_gradient_of_a_gradient_is_refused():
    x, scale = draw(3, 8).requires_grad_(), draw(3, 8, seed=1).requires_grad_()
    out = (scale * rms_norm(x, draw(8), 1e-6)).sum()
    [grad] = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_swiglu_of_extreme_gates_is_finite():
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], requires_grad=True)
    out = swiglu(gate, torch.ones(1, 5))
    out.sum().backward()
    torch.testing.assert_close(out, F.silu(gate))
    torch.testing.assert_close(gate.grad, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))


@DTYPES
@pytest.mark.parametrize("rows", [1, 7, 192, 200])
@pytest.mark.parametrize(("width", "out_width"), [(64, 96), (96, 32), (40, 80), (80, 3), (1, 5)])
def test_products_of_a_projection(dtype, rows, width, out_width):
    x_MI, grad_MO = draw(rows, width, dtype=dtype), draw(rows, out_width, dtype=dtype, seed=2)
    weight_OI = draw(out_width, width, seed=1)  # float32 beside bfloat16, as under autocast
    x, grad, weight = x_MI.double(), grad_MO.double(), weight_OI.to(dtype).double()
    for actual, expected in (
        (project(x_MI, weight_OI), x @ weight.t()),
        (project_back(grad_MO, weight_OI), grad @ weight),
        (weight_gradient(grad_MO, x_MI), grad.t() @ x),
    ):
        assert (actual - expected).norm() <= BOUNDS[dtype] / 4 * expected.norm()


def test_linear(monkeypatch):
    inputs = [draw(2, 9, 40, dtype=torch.bfloat16), draw(80, 40, dtype=torch.bfloat16, seed=1)]
    assert_equal_within(monkeypatch, linear, inputs, BOUNDS[torch.bfloat16])


def test_linear_under_autocast_rounds_the_weight(monkeypatch):
    def projected(x, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return linear(x, weight)

    inputs = [draw(2, 33, 64), draw(96, 64, seed=1)]
    assert projected(*inputs).dtype == torch.bfloat16
    assert_equal_within(monkeypatch, projected, inputs, BOUNDS[torch.bfloat16])


@DTYPES
def test_feed_forward(monkeypatch, dtype):
    sizes = [(3, 5, 24), (40, 24), (40, 24), (24, 40)]
    inputs = [draw(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]
    assert_equal_within(monkeypatch, feed_forward, inputs, BOUNDS[dtype])


def test_feed_forward_under_autocast_has_gradients_of_the_weights_dtype(monkeypatch):
    def layer(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return feed_forward(*inputs)

    inputs = [draw(9, 24), draw(40, 24, seed=1), draw(40, 24, seed=2), draw(24, 40, seed=3)]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(*inputs).dtype == torch.bfloat16
    assert_equal_within(monkeypatch, layer, inputs, BOUNDS[torch.bfloat16])


def test_feed_forward_gives_no_gradient_to_frozen_weights():
    x, gate, up, down = draw(9, 24), draw(40, 24, seed=1), draw(40, 24, seed=2), draw(24, 40)
    down.requires_grad_()
    feed_forward(x, gate, up, down).sum().backward()
    assert down.grad is not None
    assert x.grad is gate.grad is up.grad is None


@DTYPES
@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize(("width", "inner"), [(32, 16), (64, 32)])  # the second without padding
def test_routed_experts(monkeypatch, dtype, tokens, width, inner):
    experts = 6
    scores_ME = draw(tokens, experts, seed=5)
    weights_MK, experts_MK = scores_ME.softmax(-1)[:, :5].topk(2)  # the last expert gets nothing
    experts_MK[0, 1] = experts  # a dropped pair

    def layer(x, weights, gate_up, down, base=None):
        return routed_experts(x, experts_MK, weights, gate_up, down, base)

    inputs = [
        draw(tokens, width, dtype=dtype),
        weights_MK,
        draw(experts, 2 * inner, width, dtype=dtype, seed=1),
        draw(experts, width, inner, dtype=dtype, seed=2),
    ]
    assert_equal_within(monkeypatch, layer, inputs, BOUNDS[dtype])
    with_base = [*inputs, draw(tokens, width, dtype=dtype, seed=3)]
    assert_equal_within(monkeypatch, layer, with_base, BOUNDS[dtype])


@pytest.mark.parametrize("groups", [{}, {"groups": 4, "top_groups": 2, "judges": 2}])
def test_top_experts(monkeypatch, groups):
    scores_ME = draw(300, 24)
    ours_MK = top_experts(scores_ME, 5, **groups)
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    assert torch.equal(ours_MK, top_experts(scores_ME, 5, **groups))


def test_top_experts_are_different_ones_whatever_the_scores():
    scores_ME = torch.tensor([[math.nan] * 6, [-math.inf] * 6, [0.5] * 6])
    chosen_MK = top_experts(scores_ME, 3, groups=2, top_groups=1, judges=2)
    assert all(sorted(row) == [0, 1, 2] for row in chosen_MK.tolist())


@DTYPES
def test_query_heads(monkeypatch, dtype):
    angles_BTr = draw(2, 9, 4)
    inputs = [draw(2, 9, 3, 24, dtype=dtype)]
    assert_equal_within(
        monkeypatch,
        lambda x: query_heads(x, angles_BTr.cos(), angles_BTr.sin()),
        inputs,
        BOUNDS[dtype],
    )


@DTYPES
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("rotate", [rotate_pairs, rotate_halves])
def test_rotation(monkeypatch, dtype, rows, rotate):
    angles_BTr = draw(rows, 9, 12)

    def rotated(x_BTX):
        # Part of a wider row, as a projection gives it.
        heads_BTNR = x_BTX[..., 5:77].unflatten(-1, (3, 24))
        return rotate(heads_BTNR, angles_BTr.cos(), angles_BTr.sin())

    assert_equal_within(monkeypatch, rotated, [draw(2, 9, 80, dtype=dtype)], BOUNDS[dtype])


@DTYPES
def test_key_value_heads(monkeypatch, dtype):
    inputs = [draw(2, 9, 3, 16 + 12, dtype=dtype), draw(2, 9, 8, dtype=dtype, seed=1)]
    assert_equal_within(monkeypatch, lambda x, r: key_value_heads(x, r, 16), inputs, BOUNDS[dtype])


@DTYPES
@pytest.mark.parametrize("kind", ["causal", "full", "documents"])
def test_attention(monkeypatch, dtype, kind):
    mask_BTS = None
    if kind == "documents":
        document_BT = torch.tensor([[0] * 20 + [1] * 13, [0] * 33])
        same = document_BT[:, :, None] == document_BT[:, None, :]
        mask_BTS = same & torch.ones(33, 33, dtype=torch.bool).tril()

    def attention(q, k, v):
        return attend(q, k, v, mask_BTS=mask_BTS, is_causal=kind == "causal", scale=0.3)

    inputs = [draw(2, 3, 33, 16, dtype=dtype, seed=seed) for seed in range(3)]
    assert_equal_within(monkeypatch, attention, inputs, BOUNDS[dtype])


@DTYPES
@pytest.mark.parametrize("kind", ["causal", "full", "documents"])
def test_attention_over_several_blocks_of_queries(monkeypatch, dtype, kind):
    """150 queries of width 40: neither fills the blocks that products are taken in."""
    mask_BTS = None
    if kind == "documents":
        document_BT = torch.arange(150).div(70, rounding_mode="floor").expand(2, -1)
        same = document_BT[:, :, None] == document_BT[:, None, :]
        mask_BTS = same & torch.ones(150, 150, dtype=torch.bool).tril()

    def attention(q, k, v):
        return attend(q, k, v, mask_BTS=mask_BTS, is_causal=kind == "causal", scale=0.25)

    inputs = [draw(2, 2, 150, 40, dtype=dtype, seed=seed) for seed in range(3)]
    assert_equal_within(monkeypatch, attention, inputs, BOUNDS[dtype])


def test_attention_of_fewer_queries_than_keys(monkeypatch):
    def attention(q, k, v):
        return attend(q, k, v, mask_BTS=None, is_causal=False, scale=0.25)

    inputs = [draw(2, 3, length, 8, seed=length) for length in (70, 130, 130)]
    assert_equal_within(monkeypatch, attention, inputs, BOUNDS[torch.float32])


@DTYPES
@pytest.mark.parametrize("tokens", [1, 300])
def test_routed_experts_over_several_blocks(monkeypatch, dtype, tokens):
    """Some 200 rows an expert, widths that fill no panel, one expert without a token."""
    experts, width, inner = 4, 40, 33
    scores_ME = draw(tokens, experts, seed=5)
    weights_MK, experts_MK = scores_ME.softmax(-1)[:, :3].topk(2)

    def routed(x, weights, gate_up, down):
        return routed_experts(x, experts_MK, weights, gate_up, down)

    inputs = [
        draw(tokens, width, dtype=dtype),
        weights_MK,
        draw(experts, 2 * inner, width, dtype=dtype, seed=1) / 4,
        draw(experts, width, inner, dtype=dtype, seed=2) / 4,
    ]
    assert_equal_within(monkeypatch, routed, inputs, BOUNDS[dtype])


@DTYPES
def test_summed_cross_entropy_in_blocks(monkeypatch, dtype):
    monkeypatch.setattr("ziphius.ops.logprobs.LOGITS_BLOCK", 7 * 50)
    targets_X = torch.randint(50, (23,), generator=torch.Generator().manual_seed(3))
    inputs = [draw(23, 32, dtype=dtype), draw(50, 32, dtype=dtype, seed=1)]
    assert_equal_within(
        monkeypatch, lambda h, w: summed_cross_entropy(h, w, targets_X), inputs, BOUNDS[dtype]
    )


@DTYPES
def test_cross_entropy_and_squares_in_blocks(monkeypatch, dtype):
    monkeypatch.setattr("ziphius.ops.logprobs.LOGITS_BLOCK", 7 * 50)
    targets_X = torch.randint(50, (23,), generator=torch.Generator().manual_seed(3))
    inputs = [draw(23, 32, dtype=dtype), draw(50, 32, dtype=dtype, seed=1)]
    assert_equal_within(
        monkeypatch, lambda h, w: cross_entropy_and_squares(h, w, targets_X), inputs, BOUNDS[dtype]
    )
    both = cross_entropy_and_squares(*inputs, targets_X)
    assert both[0] == summed_cross_entropy(*inputs, targets_X)


def test_summed_cross_entropy_of_nothing_is_zero():
    hidden_XD = torch.zeros(0, 8, requires_grad=True)
    assert summed_cross_entropy(hidden_XD, draw(5, 8), torch.zeros(0, dtype=torch.int64)) == 0
