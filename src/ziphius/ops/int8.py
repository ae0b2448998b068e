"""Products on INT8 numbers: weights quantized by output channel, activations by row as they come.

Both symmetric: q = round(x / s) with s = max|x| / 127, one s per row of the weight and, found anew
at every call, per row of the activations (the W8A8 scheme of LLM.int8(), arXiv 2208.07339, section
2.1, and SmoothQuant, arXiv 2211.10438, section 2: "per-channel" and "per-token dynamic"). The
products are summed in int32, where nothing is rounded: the result is exactly the integer product
times the two scales. Works on a CPU.

Shapes: J rows of activations, N outputs, K inputs, G groups of rows with a weight of their own; of
experts M tokens, K experts per token, E experts, D hidden, F expert width, J = M * K.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.ops import native
from ziphius.ops.linear import as_rows
from ziphius.ops.native import int8
from ziphius.ops.swiglu import swiglu

LARGEST = 127
"""-128 is not used, so that every number has its negative."""
SMALLEST_AMAX = 1e-30
"""A row of smaller numbers than this counts as zeros; 127 / it is finite."""
LARGEST_INPUTS = (2**31 - 1) // LARGEST**2
"""Inputs of a product whose int32 sum cannot overflow: 133,144."""


def quantize_rows(x_JK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 by its own largest magnitude.

    Args:
        x_JK: [..., K], any float type. A row with NaN or infinity gets a scale that is one too,
            so that no result of it is a number.

    Returns:
        int8 numbers [..., K] and float32 scales [..., 1]; x is about numbers * scales.
    """
    x_JK = x_JK.float()
    amax_J1 = x_JK.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_AMAX)
    numbers_JK = torch.round(x_JK * (LARGEST / amax_J1)).to(torch.int8)
    return numbers_JK, amax_J1 / LARGEST


def dequantize_rows(numbers_NK: Tensor, scale_N1: Tensor) -> Tensor:
    """Multiply int8 rows by their scales, float32."""
    return numbers_NK.float() * scale_N1


def int8_linear(
    x_JK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """Multiply rows with a weight in int8, [..., N] in the type of `x_JK`.

    Args:
        x_JK: [..., K], float.
        weight_NK: int8, contiguous.
        scale_N1: float32, of the weight's rows, contiguous.
        bias_N: added to the result.
    """
    outputs, inputs = weight_NK.shape
    _check(x_JK, inputs)
    bias_N = None if bias_N is None else bias_N.float()
    if native.serves(x_JK):
        rows_JK = x_JK.float().contiguous()
        return int8.int8_linear(rows_JK, None, weight_NK, scale_N1, bias_N).to(x_JK.dtype)
    rows_JK = as_rows(x_JK)
    out_JN = _reference(rows_JK, [0, len(rows_JK)], weight_NK[None], scale_N1[None])
    out_JN = out_JN if bias_N is None else out_JN + bias_N
    return out_JN.view(*x_JK.shape[:-1], outputs).to(x_JK.dtype)


def grouped_int8_linear(
    x_JK: Tensor, starts_G1: Tensor, weight_GNK: Tensor, scale_GN1: Tensor
) -> Tensor:
    """Multiply each group of rows with its own weight in int8, [J, N] in the type of `x_JK`.

    Args:
        x_JK: rows sorted by group, float.
        starts_G1: int64 on the CPU, the first row of each group and, last, J.
        weight_GNK: int8, contiguous.
        scale_GN1: float32, contiguous.
    """
    _check(x_JK, weight_GNK.shape[-1])
    if native.serves(x_JK):
        rows_JK = x_JK.float().contiguous()
        out_JN = int8.int8_linear(rows_JK, starts_G1, weight_GNK, scale_GN1, None)
    else:
        out_JN = _reference(x_JK, starts_G1.tolist(), weight_GNK, scale_GN1)
    return out_JN.to(x_JK.dtype)


def int8_experts(
    x_MD: Tensor,
    experts_MK: Tensor,
    weights_MK: Tensor,
    gate_up: tuple[Tensor, Tensor],
    down: tuple[Tensor, Tensor],
) -> Tensor:
    """Return what `ops.experts.routed_experts` does, [M, D], with both products in int8.

    Args:
        x_MD: tokens.
        experts_MK: chosen experts; the value E marks a dropped pair, which adds nothing.
        weights_MK: weights of the chosen experts.
        gate_up: int8 [E, 2F, D], gate rows first, and its scales.
        down: int8 [E, D, F] and its scales.
    """
    num_experts = len(gate_up[0])
    pairs = experts_MK.flatten()
    counts_E = torch.bincount(pairs, minlength=num_experts + 1)[:num_experts]
    order_J = pairs.argsort(stable=True)[: int(counts_E.sum())]
    starts_E1 = torch.cat((counts_E.new_zeros(1), counts_E.cumsum(0)))
    x_JD = x_MD[order_J // experts_MK.shape[1]]
    gate_JF, up_JF = grouped_int8_linear(x_JD, starts_E1, *gate_up).chunk(2, dim=-1)
    sorted_JD = grouped_int8_linear(swiglu(gate_JF, up_JF), starts_E1, *down)
    out_MKD = sorted_JD.new_zeros(*experts_MK.shape, sorted_JD.shape[1])
    out_MKD.flatten(0, 1)[order_J] = sorted_JD
    return (out_MKD * weights_MK[..., None]).sum(dim=1).to(x_MD.dtype)


def _check(x_JK: Tensor, inputs: int) -> None:
    if x_JK.shape[-1] != inputs or inputs > LARGEST_INPUTS:
        raise ValueError(
            f"rows of {x_JK.shape[-1]} numbers for a weight of {inputs} inputs; both must be the "
            f"same, at most {LARGEST_INPUTS}."
        )
    if x_JK.device.type != "cpu":
        raise ValueError(f"int8 products are made for CPUs; the rows are on {x_JK.device}.")
    if x_JK.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            "INT8 weights cannot be trained: train the model they were made from, then quantize it."
        )


def _reference(
    x_JK: Tensor, starts: Sequence[int], weight_GNK: Tensor, scale_GN1: Tensor
) -> Tensor:
    numbers_JK, steps_J1 = quantize_rows(x_JK)
    out_JN = torch.empty(len(x_JK), weight_GNK.shape[1])
    for group, (first, end) in enumerate(pairwise(starts)):
        if first < end:
            sums_JN = _integer_product(numbers_JK[first:end], weight_GNK[group].t())
            out_JN[first:end] = sums_JN.float() * (steps_J1[first:end] * scale_GN1[group].t())
    return out_JN


def _integer_product(a_JK: Tensor, b_KN: Tensor) -> Tensor:
    if a_JK.shape[1] == 1:  # where torch._int_mm of PyTorch 2.13 gives wrong numbers on CPUs
        return a_JK.int() * b_KN.int()
    return torch._int_mm(a_JK, b_KN)
