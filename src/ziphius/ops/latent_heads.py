"""From the projections of latent attention to the heads its kernel reads, rotation included.

Sources: DeepSeek-V2 report (arXiv 2405.04434), equations 12-18. One pass each way instead of a
split, a rotation, an expansion, a concatenation and a transposition.

Shapes: B sequences, T tokens, N heads, P no-rope, R rope, r = R/2, H = P + R, V value.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
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
        batch, tokens, heads, width = query_BTNH.shape
        # One row of angles may serve all sequences.
        cos_BTr, sin_BTr = cos_BTr.expand(batch, -1, -1), sin_BTr.expand(batch, -1, -1)
        ctx.save_for_backward(cos_BTr, sin_BTr)
        out_BNTH = query_BTNH.new_empty(batch, heads, tokens, width)
        _move_queries(query_BTNH.contiguous(), out_BNTH, cos_BTr, sin_BTr, query_BTNH.shape, 0)
        return out_BNTH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNTH: Tensor) -> tuple[Tensor, None, None]:
        cos_BTr, sin_BTr = ctx.saved_tensors
        batch, heads, tokens, width = grad_BNTH.shape
        grad_BTNH = grad_BNTH.new_empty(batch, tokens, heads, width)
        _move_queries(grad_BNTH.contiguous(), grad_BTNH, cos_BTr, sin_BTr, grad_BTNH.shape, 1)
        return grad_BTNH, None, None


def _move_queries(
    source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, shape: torch.Size, backward: int
) -> None:
    batch, tokens, heads, width = shape
    rope = 2 * cos.shape[-1]
    native.call(
        "latent_queries",
        native.SUFFIXES[source.dtype],
        source,
        target,
        cos.contiguous(),
        sin.contiguous(),
        batch,
        tokens,
        heads,
        width - rope,
        rope,
        backward,
    )


class _KeyValueHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, expanded_BTNX: Tensor, shared_BTR: Tensor, nope: int
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, heads, width = expanded_BTNX.shape
        rope = shared_BTR.shape[-1]
        ctx.sizes = (batch, tokens, heads, nope, rope, width - nope)
        key_BNTH = expanded_BTNX.new_empty(batch, heads, tokens, nope + rope)
        value_BNTV = expanded_BTNX.new_empty(batch, heads, tokens, width - nope)
        native.call(
            "latent_keys",
            native.SUFFIXES[expanded_BTNX.dtype],
            expanded_BTNX.contiguous(),
            shared_BTR.to(expanded_BTNX.dtype).contiguous(),
            key_BNTH,
            value_BNTV,
            *ctx.sizes,
        )
        return key_BNTH, value_BNTV

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_key_BNTH: Tensor, grad_value_BNTV: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        batch, tokens, heads, nope, rope, value = ctx.sizes
        grad_expanded_BTNX = grad_key_BNTH.new_empty(batch, tokens, heads, nope + value)
        grad_shared_BTR = grad_key_BNTH.new_empty(batch, tokens, rope)
        native.call(
            "latent_keys_backward",
            native.SUFFIXES[grad_key_BNTH.dtype],
            grad_key_BNTH.contiguous(),
            grad_value_BNTV.contiguous(),
            grad_expanded_BTNX,
            grad_shared_BTR,
            *ctx.sizes,
        )
        return grad_expanded_BTNX, grad_shared_BTR, None
