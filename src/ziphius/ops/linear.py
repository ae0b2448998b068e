"""A projection y = W x, and the three products that it and its gradients are made of.

Shapes: X rows of any leading shape, M rows, I width in, O width out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype

CACHED = 2**19
"""Numbers of a weight that a core keeps near it; beyond, a library's blocking is faster."""


def linear(x_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Project, [X, O]."""
    dtype = compute_dtype(x_XI)
    # In float32 the gain is what the call costs.
    is_trained = torch.is_grad_enabled() and dtype == torch.bfloat16
    if is_trained and native.serves(x_XI, weight_OI) and _is_small(weight_OI):
        out_XO: Tensor = native.apply(_Linear, x_XI, weight_OI, dtype)
        return out_XO if bias_O is None else out_XO + bias_O.to(out_XO.dtype)
    return F.linear(x_XI, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    """In training, where there are many rows; the weight is rounded while it is packed."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
        x_MI = x_XI.to(dtype).reshape(-1, x_XI.shape[-1])
        ctx.save_for_backward(x_MI, weight_OI)
        ctx.input = x_XI.shape, x_XI.dtype
        return project(x_MI, weight_OI).view(*x_XI.shape[:-1], -1)

    @staticmethod
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
    if not _is_small(weight_OI):
        return x_MI @ weight_OI.to(x_MI.dtype).t()
    return _product(x_MI, weight_OI, weight_OI.shape[0], (1, weight_OI.shape[1]))


def project_back(grad_MO: Tensor, weight_OI: Tensor) -> Tensor:
    """Return grad W in the dtype of grad, [M, I]."""
    if not _is_small(weight_OI):
        return grad_MO @ weight_OI.to(grad_MO.dtype)
    return _product(grad_MO, weight_OI, weight_OI.shape[1], (weight_OI.shape[1], 1))


def weight_gradient(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """Return grad^T x, [O, I]; of bfloat16 in float32."""
    shape = grad_MO.shape[1], x_MI.shape[1]
    # In float32 a library is as fast.
    if x_MI.dtype == torch.float32 or shape[0] * shape[1] > CACHED:
        return grad_MO.t() @ x_MI
    out_OI = torch.empty(shape, dtype=torch.float32)
    tensors = (grad_MO.contiguous(), x_MI.contiguous(), out_OI)
    sizes = (len(x_MI), shape[1], shape[0])
    native.call("dense_gradient", native.SUFFIXES[x_MI.dtype], *tensors, *sizes)
    return out_OI


def _is_small(weight: Tensor) -> bool:
    return weight.numel() <= CACHED


def _product(x_MI: Tensor, weight: Tensor, out_width: int, strides: tuple[int, int]) -> Tensor:
    out_MO = torch.empty(len(x_MI), out_width, dtype=x_MI.dtype)
    kinds = native.SUFFIXES[x_MI.dtype] + native.SUFFIXES[weight.dtype]
    tensors = (x_MI.contiguous(), weight.contiguous(), out_MO)
    native.call("dense", kinds, *tensors, *x_MI.shape, out_width, *strides)
    return out_MO
