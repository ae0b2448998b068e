"""FP8 blocks against the formula written as a loop, and against transformers' own reading."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.models.weights.fp8 import dequantize, quantize, scale_shape

FORMATS = pytest.mark.parametrize("scale_format", ["float", "ue8m0"])


def weight_of(rows, columns, seed=0):
    """A weight whose blocks differ in size by orders of magnitude, as no single scale could fit."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-6, 2, rows)[:, None] * torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=generator) * spread


def block_by_block(weight, scale_format):
    """Facts of the format, number by number: amax, scale, and nothing clever."""
    rows, columns = weight.shape
    scales = torch.empty(scale_shape(rows, columns))
    numbers = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(0, rows, 128):
        for j in range(0, columns, 128):
            block = weight[i : i + 128, j : j + 128]
            scale = max(block.abs().max().item(), 1e-4) / 448
            if scale_format == "ue8m0":
                scale = 2.0 ** math.ceil(math.log2(scale))
            scales[i // 128, j // 128] = scale
            numbers[i : i + 128, j : j + 128] = (block / scale).to(torch.float8_e4m3fn)
    return numbers, scales


def times_scales(numbers, scales):
    out = numbers.float()
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            out[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scales[i, j]
    return out


def test_scales_are_counted_with_the_cut_blocks():
    assert scale_shape(576, 7168) == (5, 56)
    assert scale_shape(128, 128) == (1, 1)
    assert scale_shape(129, 1) == (2, 1)


@FORMATS
@pytest.mark.parametrize("shape", [(576, 300), (128, 256), (1, 1), (64, 129), (257, 128)])
def test_blocks_equal_the_formula_as_a_loop(shape, scale_format):
    weight = weight_of(*shape)
    numbers, scales = quantize(weight, scale_format)
    expected_numbers, expected_scales = block_by_block(weight, scale_format)
    assert numbers.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    if scale_format == "ue8m0":
        assert torch.equal(scales, expected_scales)
        assert torch.equal(numbers.float(), expected_numbers.float())
    else:
        # Rounding a scale up to 20 bits moves it by less than 2^-19.
        relative = (scales - expected_scales) / expected_scales
        assert (relative > -(2**-23)).all()
        assert (relative < 2**-19).all()
    assert torch.equal(dequantize(numbers, scales), times_scales(numbers, scales))


@FORMATS
def test_error_is_at_most_half_a_step_of_e4m3(scale_format):
    weight = weight_of(300, 300)
    numbers, scales = quantize(weight, scale_format)
    error = (dequantize(numbers, scales) - weight).abs()
    step = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :300]
    # 3 bits after the leading one: half a step is 1/16 of the number; 2^-10 among subnormals.
    assert (error <= torch.maximum(weight.abs() / 16, step * 2**-10) * 1.001).all()


@FORMATS
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-30, 30),
)
def test_quantizing_what_was_quantized_changes_nothing(scale_format, rows, columns, seed, exponent):
    weight = weight_of(rows, columns, seed) * 2.0**exponent
    once = dequantize(*quantize(weight, scale_format))
    numbers, scales = quantize(once, scale_format)
    twice = dequantize(numbers, scales)
    assert torch.equal(once, twice)
    again_numbers, again_scales = quantize(twice, scale_format)
    assert torch.equal(again_scales, scales)
    assert torch.equal(again_numbers.view(torch.uint8), numbers.view(torch.uint8))


def test_products_are_rounded_once_to_the_asked_dtype():
    numbers, scales = quantize(weight_of(200, 200))
    expected = times_scales(numbers, scales).to(torch.bfloat16)
    assert torch.equal(dequantize(numbers, scales, torch.bfloat16), expected)


def test_bfloat16_and_float32_weights_give_the_same_blocks():
    weight = weight_of(130, 130).bfloat16()
    for from_bf16, from_fp32 in zip(quantize(weight), quantize(weight.float()), strict=True):
        assert torch.equal(from_bf16.float(), from_fp32.float())


def test_zeros_stay_zeros():
    numbers, scales = quantize(torch.zeros(5, 5))
    assert torch.equal(dequantize(numbers, scales), torch.zeros(5, 5))
    assert scales.item() == pytest.approx(1e-4 / 448, rel=2**-19)


@FORMATS
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_shows_in_the_scale_of_its_block_alone(value, scale_format):
    weight = weight_of(256, 128)
    weight[200, 3] = value
    _, scales = quantize(weight, scale_format)
    assert scales.isfinite().flatten().tolist() == [True, False]


@FORMATS
def test_transformers_reads_the_same_values(scale_format):
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    numbers, scales = quantize(weight_of(384, 256), scale_format)
    theirs = _dequantize_fp8_weight(numbers, scales, [128, 128], torch.float32)
    assert torch.equal(dequantize(numbers, scales), theirs)
