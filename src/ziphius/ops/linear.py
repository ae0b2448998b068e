"""A projection y = W x, and the three products that it and its gradients are made of.

Shapes: X rows of any leading shape, M rows, I width in, O width out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype

CACHED = 2**19
"""Numbers of a weight that a core keeps near it; beyond, a library's blocking is faster."""


def linear(x_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Project, [X, O]."""
    if trains_small(x_XI, weight_OI):
        out_XO: Tensor = native.apply(_Linear, x_XI, weight_OI, compute_dtype(x_XI))
        return out_XO if bias_O is None else out_XO + bias_O.to(out_XO.dtype)
    return F.linear(x_XI, weight_OI, bias_O)


def trains_small(x_XI: Tensor, *weights: Tensor) -> bool:
    """Tell whether the products below serve: in training there are many rows for each packing."""
    is_small = sum(weight.numel() for weight in weights) <= CACHED
    return torch.is_grad_enabled() and is_small and native.serves(x_XI, *weights)


class _Linear(torch.autograd.Function):
    """The weight is rounded while it is packed, and its gradient comes in float32."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
        x_MI = x_XI.to(dtype).reshape(-1, x_XI.shape[-1])
        ctx.save_for_backward(x_MI, weight_OI)
        ctx.input = x_XI.shape, x_XI.dtype
        return project(x_MI, weight_OI).view(*x_XI.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, weight_OI = ctx.saved_tensors
        grad_MO = grad_XO.reshape(len(x_MI), -1)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            shape, dtype = ctx.input
            grad_x = project_back(grad_MO, weight_OI).view(shape).to(dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad_MO, x_MI).to(weight_OI.dtype)
        return grad_x, grad_weight, None


def project(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x W^T in the dtype of x, [M, O]."""
    return _product(x_MI, weight_OI, weight_OI.shape[0], (1, weight_OI.shape[1]))


def project_back(grad_MO: Tensor, weight_OI: Tensor) -> Tensor:
    """Return grad W in the dtype of grad, [M, I]."""
    return _product(grad_MO, weight_OI, weight_OI.shape[1], (weight_OI.shape[1], 1))


def weight_gradient(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """Return grad^T x, [O, I]; of bfloat16 in float32."""
    if x_MI.dtype == torch.float32:  # a library is as fast
        return grad_MO.t() @ x_MI
    rows, in_width = x_MI.shape
    out_OI = torch.empty(grad_MO.shape[1], in_width, dtype=torch.float32)
    tensors = (grad_MO.contiguous(), x_MI.contiguous(), out_OI)
    native.call("dense_gradient", "b", *tensors, rows, in_width, len(out_OI))
    return out_OI


def _product(x_MI: Tensor, weight: Tensor, out_width: int, strides: tuple[int, int]) -> Tensor:
    out_MO = torch.empty(len(x_MI), out_width, dtype=x_MI.dtype)
    kinds = native.SUFFIXES[x_MI.dtype] + native.SUFFIXES[weight.dtype]
    tensors = (x_MI.contiguous(), weight.contiguous(), out_MO)
    native.call("dense", kinds, *tensors, *x_MI.shape, out_width, *strides)
    return out_MO
