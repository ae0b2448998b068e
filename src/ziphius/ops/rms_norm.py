"""RMS norm (arXiv 1910.07467): divide by the root mean square in float32, then scale.

Shapes: X rows of any leading shape, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension; under autocast the result already has its dtype."""
    dtype = compute_dtype(x_XD)
    if native.serves(x_XD, weight_D) and (x_XD.dtype, dtype) != (torch.bfloat16, torch.float32):
        out_XD: Tensor = native.apply(_RMSNorm, x_XD, weight_D, eps, dtype)
        return out_XD
    normed_XD = F.rms_norm(x_XD.float(), weight_D.shape, weight_D.float(), eps)
    return normed_XD.to(dtype)


class _RMSNorm(torch.autograd.Function):
    """One pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x_XD, weight_D = x_XD.contiguous(), weight_D.float().contiguous()
        out_XD = torch.empty_like(x_XD, dtype=dtype)
        width = x_XD.shape[-1]
        rows = x_XD.numel() // width
        inverse_X = torch.empty(rows, dtype=torch.float32)
        ctx.suffix = native.SUFFIXES[x_XD.dtype] + native.SUFFIXES[dtype]
        native.call("rms_norm", ctx.suffix, x_XD, weight_D, out_XD, inverse_X, rows, width, eps)
        ctx.save_for_backward(x_XD, weight_D, inverse_X)
        return out_XD

    @staticmethod
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_XD, weight_D, inverse_X = ctx.saved_tensors
        grad_x_XD = torch.empty_like(x_XD)
        grad_weight_D = torch.empty_like(weight_D)
        native.call(
            "rms_norm_backward",
            ctx.suffix,
            grad_XD.contiguous(),
            x_XD,
            weight_D,
            inverse_X,
            grad_x_XD,
            grad_weight_D,
            inverse_X.numel(),
            weight_D.numel(),
        )
        return grad_x_XD, grad_weight_D, None, None
