"""Rotate parts of queries and keys by their positions (RoPE, arXiv 2104.09864).

The checkpoints of V2 and V3 rotate neighbouring pairs (x0, x1), (x2, x3), ...; those of Llama and
Qwen rotate x_i with x_(i + R/2). Both are here, because weights are used as they are stored.

Shapes: B sequences, T tokens, N heads (any number, also 1), R rotated width, r = R/2.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native.heads import rotate


def rotate_pairs(x_BTNR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotate neighbouring pairs, in float32."""
    if native.serves(x_BTNR):
        out_BTNR: Tensor = native.apply(_Rotate, x_BTNR, cos_BTr, sin_BTr, False)
        return out_BTNR
    first, second = x_BTNR.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_BTr.unsqueeze(2), sin_BTr.unsqueeze(2)
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.flatten(-2).to(x_BTNR.dtype)


def rotate_halves(x_BTNR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotate x_i with x_(i + R/2), in float32."""
    if native.serves(x_BTNR):
        out_BTNR: Tensor = native.apply(_Rotate, x_BTNR, cos_BTr, sin_BTr, True)
        return out_BTNR
    first, second = x_BTNR.float().chunk(2, dim=-1)
    cos, sin = cos_BTr.unsqueeze(2), sin_BTr.unsqueeze(2)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_BTNR.dtype)


class _Rotate(torch.autograd.Function):
    """One pass each way; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x_BTNR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, halves: bool) -> Tensor:
        # One row of angles may serve all sequences.
        angles = [x.expand(x_BTNR.shape[0], -1, -1).contiguous() for x in (cos_BTr, sin_BTr)]
        ctx.save_for_backward(*angles)
        ctx.halves = halves
        return rotate(x_BTNR, *angles, halves=halves, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTNR: Tensor) -> tuple[Tensor, None, None, None]:
        grad = rotate(grad_BTNR, *ctx.saved_tensors, halves=ctx.halves, backward=True)
        return grad, None, None, None
