"""From the projections of latent attention to the heads its kernel reads, rotation included.

Sources: DeepSeek-V2 report (arXiv 2405.04434), equations 12-18. One pass each way instead of a
split, a rotation, an expansion, a concatenation and a transposition.

Shapes: B sequences, T tokens, N heads, P no-rope, R rope, r = R/2, H = P + R, V value.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native.heads import latent_keys, latent_keys_backward, latent_queries
from ziphius.ops.rotary import rotate_pairs


def query_heads(query_BTNH: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotate the last R = 2r numbers of each query and put heads first, [B, N, T, H]."""
    if native.serves(query_BTNH):
        out_BNTH: Tensor = native.apply(_QueryHeads, query_BTNH, cos_BTr, sin_BTr)
        return out_BNTH
    rope = 2 * cos_BTr.shape[-1]
    nope_BTNP, rope_BTNR = query_BTNH.split((query_BTNH.shape[-1] - rope, rope), -1)
    rotated_BTNR = rotate_pairs(rope_BTNR, cos_BTr, sin_BTr)
    return torch.cat((nope_BTNP, rotated_BTNR), dim=-1).transpose(1, 2)


def key_value_heads(expanded_BTNX: Tensor, shared_BTR: Tensor, nope: int) -> tuple[Tensor, Tensor]:
    """Give every head its key [B, N, T, H] and its value [B, N, T, V].

    Args:
        expanded_BTNX: per head P numbers of the key, then V of the value.
        shared_BTR: the rotated part of the key, the same for all heads.
        nope: P.
    """
    if native.serves(expanded_BTNX, shared_BTR):
        heads: tuple[Tensor, Tensor] = native.apply(_KeyValueHeads, expanded_BTNX, shared_BTR, nope)
        return heads
    value = expanded_BTNX.shape[-1] - nope
    nope_BTNP, value_BTNV = expanded_BTNX.split((nope, value), -1)
    rope_BTNR = shared_BTR.unsqueeze(2).expand(-1, -1, expanded_BTNX.shape[2], -1)
    key_BTNH = torch.cat((nope_BTNP, rope_BTNR), dim=-1)
    return key_BTNH.transpose(1, 2), value_BTNV.transpose(1, 2)


class _QueryHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BTNH: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
        # One row of angles may serve all sequences.
        angles = [x.expand(len(query_BTNH), -1, -1) for x in (cos_BTr, sin_BTr)]
        ctx.save_for_backward(*angles)
        return _moved(query_BTNH, angles, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNTH: Tensor) -> tuple[Tensor, None, None]:
        return _moved(grad_BNTH, ctx.saved_tensors, backward=True), None, None


def _moved(x: Tensor, angles: Sequence[Tensor], *, backward: bool) -> Tensor:
    cos_BTr, sin_BTr = (angle.contiguous() for angle in angles)
    return latent_queries(x.contiguous(), cos_BTr, sin_BTr, backward=backward)


class _KeyValueHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, expanded_BTNX: Tensor, shared_BTR: Tensor, nope: int
    ) -> tuple[Tensor, Tensor]:
        ctx.nope = nope
        shared_BTR = shared_BTR.to(expanded_BTNX.dtype).contiguous()
        return latent_keys(expanded_BTNX.contiguous(), shared_BTR, nope)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_key_BNTH: Tensor, grad_value_BNTV: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        grads = (grad_key_BNTH.contiguous(), grad_value_BNTV.contiguous())
        return *latent_keys_backward(*grads, ctx.nope), None
