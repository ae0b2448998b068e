"""The kernel of `int8.cpp`: products of rows with INT8 weights.

Shapes: J rows of activations, N outputs, K inputs, G groups of rows with a weight of their own.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, optional_address, own_address

_INT8_LINEAR = Kernel(
    "int8_linear",
    "const float* x, int64_t rows, const int64_t* starts, int64_t groups, const int8_t* weight, "
    "const float* scale, const float* bias, float* out, int64_t outputs, int64_t inputs, int tiles",
    kinds=("",),
    returns="int64_t",
)


def int8_linear(
    x_JK: Tensor,
    starts_G1: Tensor | None,
    weight_GNK: Tensor,
    scale_GN1: Tensor,
    bias_N: Tensor | None,
    *,
    tiles: bool = True,
) -> Tensor:
    """Quantize rows and multiply each group of them with its own weight, float32 [J, N].

    Args:
        x_JK: float32, rows of any leading shape.
        starts_G1: int64, the first row of each group and, last, J; None makes one group of all.
        weight_GNK: int8; of one group it may be [N, K].
        scale_GN1: float32, of the weights' rows.
        bias_N: float32, added to the results of all groups.
        tiles: use matrix units where there are some; the loops give the same numbers.
    """
    *lead, outputs, inputs = weight_GNK.shape
    [groups] = lead or [1]
    if starts_G1 is None and groups != 1:
        raise ValueError(f"rows for {groups} weights do not say where each one's begin.")
    shape = x_JK.shape[:-1]
    rows, out_JN = shape.numel(), x_JK.new_empty(*shape, outputs)
    failed = _INT8_LINEAR.of()(
        address("rows of int8_linear", x_JK, torch.float32, (*shape, inputs)),
        rows,
        optional_address("starts of groups", starts_G1, torch.int64, (groups + 1,)),
        groups,
        address("weight of int8_linear", weight_GNK, torch.int8, weight_GNK.shape),
        address("scales of int8_linear", scale_GN1, torch.float32, (*lead, outputs, 1)),
        optional_address("bias of int8_linear", bias_N, torch.float32, (outputs,)),
        own_address(out_JN),
        *(outputs, inputs, tiles),
    )
    if failed:
        raise ValueError(f"starts of groups do not go from 0 to {rows}, each from the one before.")
    return out_JN
