"""RMS norm (arXiv 1910.07467): divide by the root mean square in float32, then scale.

Shapes: X rows of any leading shape, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native import pointwise
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
        _, out_XD, inverse_X = pointwise.rms_norm(x_XD, None, weight_D, eps, dtype)
        ctx.save_for_backward(x_XD, weight_D, inverse_X)
        return out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x_XD, _, grad_weight_D = pointwise.rms_norm_backward(
            grad_XD.contiguous(), None, *ctx.saved_tensors
        )
        return grad_x_XD, grad_weight_D, None, None


class _AddRMSNorm(torch.autograd.Function):
    """The sum costs no pass of its own, nor do the sum of the two gradients and its rounding."""

    @staticmethod
    def forward(
        ctx: Any, stream_XD: Tensor, update_XD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        stream_XD, weight_D = stream_XD.contiguous(), weight_D.float().contiguous()
        sum_XD, out_XD, inverse_X = pointwise.rms_norm(
            stream_XD, update_XD.contiguous(), weight_D, eps, update_XD.dtype
        )
        ctx.save_for_backward(sum_XD, weight_D, inverse_X)
        return sum_XD, out_XD

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_sum_XD: Tensor, grad_XD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_stream_XD, grad_update_XD, grad_weight_D = pointwise.rms_norm_backward(
            grad_XD.contiguous(), grad_sum_XD.contiguous(), *ctx.saved_tensors
        )
        return grad_stream_XD, grad_update_XD, grad_weight_D, None
