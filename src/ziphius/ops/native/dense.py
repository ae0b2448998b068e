"""Kernels of `dense.cpp`: products of many rows with a weight that fits into a core's cache.

Shapes: M rows, I numbers of a row that goes in, O of one that comes out.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, own_address

_DENSE = Kernel(
    "dense",
    "const T* x, const U* weight, T* out, int64_t rows, int64_t in_width, int64_t out_width, "
    "int64_t row_stride, int64_t column_stride",
    kinds=("ff", "bf", "bb"),
)
_DENSE_GRADIENT = Kernel(
    "dense_gradient",
    "const T* grad, const T* x, float* out, int64_t rows, int64_t in_width, int64_t out_width",
    kinds=("b",),
)


def dense(x_MI: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """Return x W, or x W^T, in the dtype of x, [M, O].

    Args:
        x_MI: rows.
        weight: [I, O], or [O, I] if it is to be transposed.
        transposed: which of the two.
    """
    (rows, in_width), dtype = x_MI.shape, x_MI.dtype
    out_width = weight.shape[0 if transposed else 1]
    shape = (out_width, in_width) if transposed else (in_width, out_width)
    strides = (1, in_width) if transposed else (out_width, 1)
    out_MO = x_MI.new_empty(rows, out_width)
    _DENSE.of(dtype, weight.dtype)(
        address("rows of a product", x_MI, dtype, (rows, in_width)),
        address("weight of a product", weight, weight.dtype, shape),
        own_address(out_MO),
        *(rows, in_width, out_width, *strides),
    )
    return out_MO


def dense_gradient(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """Return grad^T x in float32, [O, I].

    Args:
        grad_MO: bfloat16.
        x_MI: bfloat16.
    """
    (rows, in_width), out_width, dtype = x_MI.shape, grad_MO.shape[1], x_MI.dtype
    out_OI = x_MI.new_empty(out_width, in_width, dtype=torch.float32)
    _DENSE_GRADIENT.of(dtype)(
        address("gradient of a product", grad_MO, dtype, (rows, out_width)),
        address("rows of a product", x_MI, dtype, (rows, in_width)),
        own_address(out_OI),
        *(rows, in_width, out_width),
    )
    return out_OI
