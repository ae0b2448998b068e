"""`ops/int8.py`: the integers are those of an exact product, in every form; bounds of errors."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.ops import native
from ziphius.ops.experts import routed_experts
from ziphius.ops.int8 import (
    dequantize_rows,
    grouped_int8_linear,
    int8_experts,
    int8_linear,
    quantize_rows,
)
from ziphius.ops.native import int8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, numbers: Tensor, scale: Tensor) -> Tensor:
    """The product of the integers in int64, then both scales."""
    rows, steps = quantize_rows(x)
    sums = (rows.long()[:, None, :] * numbers.long()[None, :, :]).sum(-1)
    return sums.float() * (steps * scale.t())


@pytest.fixture(params=["tiles", "loops", "twin"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to compute the product; on a machine without AMX the first is the second."""
    if request.param == "twin":
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    elif request.param == "loops":
        monkeypatch.setattr(int8, "int8_linear", partial(int8.int8_linear, tiles=False))
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 70])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(1, 1), (16, 64), (32, 64), (17, 65), (33, 130), (48, 63), (7, 200), (80, 128)],
)
def test_the_integers_are_exact(form: str, rows: int, outputs: int, inputs: int) -> None:
    x = draw(rows, inputs)
    numbers, scale = quantize_rows(draw(outputs, inputs, seed=1))
    assert torch.equal(int8_linear(x, numbers, scale), exact(x, numbers, scale))


def test_the_largest_sums_do_not_overflow(form: str) -> None:
    x = torch.ones(2, 4_096)
    x[1] = -1
    numbers = torch.full((3, 4_096), 127, dtype=torch.int8)
    out = int8_linear(x, numbers, torch.ones(3, 1))
    assert torch.equal(out, exact(x, numbers, torch.ones(3, 1)))
    assert float(out[0, 0]) == pytest.approx(127 * 4_096)
    assert torch.equal(out[1], -out[0])


def test_two_threads_give_what_one_does() -> None:
    x, (numbers, scale) = draw(65, 256), quantize_rows(draw(200, 256, seed=1))
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(int8_linear(x, numbers, scale))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_error_is_within_half_a_step_of_each_factor(form: str) -> None:
    x, weight = draw(20, 96), draw(40, 96, seed=1)
    numbers, scale = quantize_rows(weight)
    rows, steps = quantize_rows(x)
    assert ((dequantize_rows(numbers, scale) - weight).abs() <= 0.5001 * scale).all()
    assert ((dequantize_rows(rows, steps) - x).abs() <= 0.5001 * steps).all()
    found = int8_linear(x, numbers, scale).double()
    bound = (
        0.5001 * steps @ weight.abs().sum(1)[None] + x.abs().sum(1)[:, None] * 0.5001 * scale.t()
    )
    bound = bound + 96 * 0.26 * steps * scale.t()
    error = (found - x.double() @ weight.double().t()).abs()
    assert (error <= bound).all()
    assert error.norm() < 0.02 * found.norm()
    assert error.norm() > 0.001 * found.norm()


def test_bias_shape_and_type(form: str) -> None:
    x, bias = draw(3, 5, 64), draw(24, seed=2)
    numbers, scale = quantize_rows(draw(24, 64, seed=1))
    out = int8_linear(x, numbers, scale, bias)
    assert out.shape == (3, 5, 24)
    expected = exact(x.flatten(0, 1), numbers, scale).view(3, 5, 24) + bias
    assert torch.allclose(out, expected, atol=1e-5)
    half = int8_linear(x.bfloat16(), numbers, scale, bias.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=0.3)
    strided = int8_linear(x.transpose(0, 1), numbers, scale, bias)
    assert torch.equal(strided, out.transpose(0, 1))


def test_groups_have_weights_of_their_own(form: str) -> None:
    x, starts = draw(40, 72), torch.tensor([0, 0, 5, 38, 38, 40])
    numbers, scale = quantize_rows(draw(5, 30, 72, seed=1))
    out = grouped_int8_linear(x, starts, numbers, scale)
    for group, (first, end) in enumerate([(0, 0), (0, 5), (5, 38), (38, 38), (38, 40)]):
        expected = exact(x[first:end], numbers[group], scale[group])
        assert torch.equal(out[first:end], expected)


def test_experts_are_those_of_the_float_layer(form: str) -> None:
    x_MD, gate_up_E2FD, down_EDF = draw(9, 64), draw(6, 48, 64, seed=1), draw(6, 64, 24, seed=2)
    experts_MK = torch.stack([torch.randperm(6)[:3] for _ in range(9)])
    weights_MK = draw(9, 3, seed=3).softmax(-1)
    gate_up, down = quantize_rows(gate_up_E2FD), quantize_rows(down_EDF)
    with torch.no_grad():
        found = int8_experts(x_MD, experts_MK, weights_MK, gate_up, down)
        expected = routed_experts(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF)
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_dropped_pairs_add_nothing(form: str) -> None:
    x_MD, gate_up_E2FD, down_EDF = draw(9, 64), draw(6, 48, 64, seed=1), draw(6, 64, 24, seed=2)
    experts_MK = torch.stack([torch.randperm(6)[:3] for _ in range(9)])
    weights_MK = draw(9, 3, seed=3).softmax(-1)
    gate_up, down = quantize_rows(gate_up_E2FD), quantize_rows(down_EDF)
    is_kept_MK = torch.arange(27).view(9, 3) % 4 > 0
    is_kept_MK[5] = False
    with torch.no_grad():
        some_MK = torch.where(is_kept_MK, experts_MK, 6)
        found = int8_experts(x_MD, some_MK, weights_MK, gate_up, down)
        expected = int8_experts(x_MD, experts_MK, weights_MK * is_kept_MK, gate_up, down)
        nothing = int8_experts(x_MD, torch.full_like(experts_MK, 6), weights_MK, gate_up, down)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found[5].any()
    assert not nothing.any()


def test_broken_rows_stay_broken_and_harm_no_other(form: str) -> None:
    x = draw(4, 64)
    x[1, 3], x[2, 5] = float("nan"), float("-inf")
    numbers, scale = quantize_rows(draw(20, 64, seed=1))
    out = int8_linear(x, numbers, scale)
    assert not out[1:3].isfinite().any()
    assert torch.equal(out[[0, 3]], exact(x[[0, 3]], numbers, scale))


def test_zeros_and_tiny_rows(form: str) -> None:
    x = torch.zeros(2, 64)
    x[1] = 1e-39
    numbers, scale = quantize_rows(draw(20, 64, seed=1))
    assert torch.equal(int8_linear(x, numbers, scale), torch.zeros(2, 20))


def test_training_is_refused() -> None:
    numbers, scale = quantize_rows(draw(8, 64))
    with pytest.raises(ConfigError, match="INT8 weights cannot be trained"):
        int8_linear(draw(2, 64).requires_grad_(), numbers, scale)
