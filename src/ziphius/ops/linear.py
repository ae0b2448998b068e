"""A projection y = W x, and the three products that it and its gradients are made of.

Shapes: X rows of any leading shape, M rows, I width in, O width out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native.dense import dense, dense_gradient
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
        x_MI = as_rows(x_XI.to(dtype))
        ctx.save_for_backward(x_MI, weight_OI)
        ctx.input = x_XI.shape, x_XI.dtype
        return project(x_MI, weight_OI).view(*x_XI.shape[:-1], len(weight_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, weight_OI = ctx.saved_tensors
        grad_MO = as_rows(grad_XO)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            shape, dtype = ctx.input
            grad_x = project_back(grad_MO, weight_OI).view(shape).to(dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad_MO, x_MI).to(weight_OI.dtype)
        return grad_x, grad_weight, None


def as_rows(x_XI: Tensor) -> Tensor:
    """Return the rows one below the other, [M, I], where there is none too."""
    return x_XI.reshape(x_XI.shape[:-1].numel(), x_XI.shape[-1])


def project(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x W^T in the dtype of x, [M, O]."""
    return dense(x_MI.contiguous(), weight_OI.contiguous(), transposed=True)


def project_back(grad_MO: Tensor, weight_OI: Tensor) -> Tensor:
    """Return grad W in the dtype of grad, [M, I]."""
    return dense(grad_MO.contiguous(), weight_OI.contiguous(), transposed=False)


def weight_gradient(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """Return grad^T x, [O, I]; of bfloat16 in float32."""
    if x_MI.dtype == torch.float32:  # a library is as fast
        return grad_MO.t() @ x_MI
    return dense_gradient(grad_MO.contiguous(), x_MI.contiguous())
