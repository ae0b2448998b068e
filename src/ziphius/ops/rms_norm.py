"""RMS norm (arXiv 1910.07467): divide by the root mean square in float32, then scale.

Shapes: X rows of any leading shape, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension; under autocast the result already has its dtype."""
    dtype = compute_dtype(x_XD)
    if _serves(x_XD, weight_D, dtype):
        out_XD: Tensor = native.apply(_RMSNorm, x_XD, weight_D, eps, dtype)
        return out_XD
    normed_XD = F.rms_norm(x_XD.float(), weight_D.shape, weight_D.float(), eps)
    return normed_XD.to(dtype)


def add_rms_norm(
    stream_XD: Tensor, update_XD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return stream + update and that sum normalised, in one pass over both."""
    dtype = compute_dtype(stream_XD)
    if _serves(stream_XD, weight_D, dtype):
        both: tuple[Tensor, Tensor] = native.apply(
            _AddRMSNorm, stream_XD, update_XD.to(dtype), weight_D, eps
        )
        return both
    sum_XD = stream_XD + update_XD
    return sum_XD, rms_norm(sum_XD, weight_D, eps)


def _serves(x_XD: Tensor, weight_D: Tensor, dtype: torch.dtype) -> bool:
    return native.serves(x_XD, weight_D) and (x_XD.dtype, dtype) != (torch.bfloat16, torch.float32)


class _RMSNorm(torch.autograd.Function):
    """One pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x_XD, weight_D = x_XD.contiguous(), weight_D.float().contiguous()
        out_XD = torch.empty_like(x_XD, dtype=dtype)
        inverse_X = _forward(x_XD, None, weight_D, None, out_XD, eps)
        ctx.save_for_backward(x_XD, weight_D, inverse_X)
        return out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_XD, weight_D, inverse_X = ctx.saved_tensors
        grad_x_XD, grad_weight_D = torch.empty_like(x_XD), torch.empty_like(weight_D)
        _backward(grad_XD, None, x_XD, weight_D, inverse_X, grad_x_XD, None, grad_weight_D)
        return grad_x_XD, grad_weight_D, None, None


class _AddRMSNorm(torch.autograd.Function):
    """The sum costs no pass of its own, nor do the sum of the two gradients and its rounding."""

    @staticmethod
    def forward(
        ctx: Any, stream_XD: Tensor, update_XD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        stream_XD, weight_D = stream_XD.contiguous(), weight_D.float().contiguous()
        sum_XD, out_XD = torch.empty_like(stream_XD), torch.empty_like(update_XD)
        update_XD = update_XD.contiguous()
        inverse_X = _forward(stream_XD, update_XD, weight_D, sum_XD, out_XD, eps)
        ctx.save_for_backward(sum_XD, weight_D, inverse_X)
        ctx.update_dtype = update_XD.dtype
        return sum_XD, out_XD

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_sum_XD: Tensor, grad_XD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        sum_XD, weight_D, inverse_X = ctx.saved_tensors
        grad_stream_XD, grad_weight_D = torch.empty_like(sum_XD), torch.empty_like(weight_D)
        grad_update_XD = None
        if ctx.update_dtype != sum_XD.dtype:
            grad_update_XD = torch.empty_like(sum_XD, dtype=ctx.update_dtype)
        grads = (grad_stream_XD, grad_update_XD, grad_weight_D)
        _backward(grad_XD, grad_sum_XD.contiguous(), sum_XD, weight_D, inverse_X, *grads)
        if grad_update_XD is None:
            grad_update_XD = grad_stream_XD
        return grad_stream_XD, grad_update_XD, grad_weight_D, None


def _forward(
    x_XD: Tensor,
    update_XD: Tensor | None,
    weight_D: Tensor,
    sum_XD: Tensor | None,
    out_XD: Tensor,
    eps: float,
) -> Tensor:
    """Run the kernel; return what each row was multiplied by."""
    width = x_XD.shape[-1]
    inverse_X = torch.empty(x_XD.numel() // width, dtype=torch.float32)
    tensors = (x_XD, update_XD, weight_D, sum_XD, out_XD, inverse_X)
    native.call("rms_norm", _kinds(x_XD, out_XD), *tensors, inverse_X.numel(), width, eps)
    return inverse_X


def _backward(
    grad_XD: Tensor,
    grad_sum_XD: Tensor | None,
    x_XD: Tensor,
    weight_D: Tensor,
    inverse_X: Tensor,
    grad_x_XD: Tensor,
    grad_update_XD: Tensor | None,
    grad_weight_D: Tensor,
) -> None:
    """Run the kernel that fills the last three."""
    inputs = (grad_XD.contiguous(), grad_sum_XD, x_XD, weight_D, inverse_X)
    grads = (grad_x_XD, grad_update_XD, grad_weight_D)
    sizes = (inverse_X.numel(), weight_D.numel())
    native.call("rms_norm_backward", _kinds(x_XD, grad_XD), *inputs, *grads, *sizes)


def _kinds(x_XD: Tensor, out_XD: Tensor) -> str:
    return native.SUFFIXES[x_XD.dtype] + native.SUFFIXES[out_XD.dtype]
