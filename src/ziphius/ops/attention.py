"""Softmax attention of queries over keys, through fused kernels: our own in training on a CPU.

Shapes: B sequences, N heads of queries, G heads of keys and values, T queries, S keys, H width of a
query or key, V width of a value, X queries of all heads that share a key.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native.attention import attention_backward, attention_forward
from ziphius.ops.precision import own_float32_products


def attend(
    query_BNTH: Tensor,
    key_BGSH: Tensor,
    value_BGSV: Tensor,
    *,
    mask_BTS: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """Return the weighted values [B, N, T, V].

    Args:
        query_BNTH: queries.
        key_BGSH: keys; N / G heads of queries in a row share one.
        value_BGSV: values, V <= H.
        mask_BTS: bool, true where a query sees a key; None lets `is_causal` decide alone.
        is_causal: use the kernel's own causal mask; needs T = S.
        scale: factor on the scores before the softmax.
    """
    shared_by = query_BNTH.shape[1] // key_BGSH.shape[1]
    inputs = (query_BNTH, key_BGSH, value_BGSV)
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    queries, width = query_BNTH.shape[2:]
    if shared_by > 1 and (queries == 1 or (not trains and not is_causal and queries <= width)):
        return _folded(query_BNTH, key_BGSH, value_BGSV, mask_BTS, scale)
    # The CPU's kernel reads shared heads where they are. Whole rows copy them, at no cost in time,
    # which the memory of `models/cost.py` counts.
    shares = not trains and not is_causal and query_BNTH.device.type == "cpu"
    if not shares:
        key_BGSH, value_BGSV = _repeated(key_BGSH, shared_by), _repeated(value_BGSV, shared_by)
    value_width = value_BGSV.shape[-1]
    padding = width - value_width
    assert padding >= 0, "values wider than queries"
    if trains and native.serves(query_BNTH, key_BGSH, value_BGSV):
        inputs = (query_BNTH, key_BGSH, value_BGSV)
        trained_BNTV: Tensor = native.apply(_Attention, *inputs, mask_BTS, is_causal, scale)
        return trained_BNTV
    # On a CPU the flash kernel wants equal widths; without the padding latent attention falls to a
    # path that keeps all scores in memory and is 4-5 times slower at 2,048 tokens.
    if padding:
        value_BGSV = F.pad(value_BGSV, (0, padding))
    with own_float32_products():
        out_BNTH = F.scaled_dot_product_attention(
            query_BNTH,
            key_BGSH,
            value_BGSV,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            is_causal=is_causal,
            scale=scale,
            enable_gqa=shares and shared_by > 1,
        )
    return out_BNTH[..., :value_width]


def _folded(
    query_BNTH: Tensor,
    key_BGSH: Tensor,
    value_BGSV: Tensor,
    mask_BTS: Tensor | None,
    scale: float,
) -> Tensor:
    """Take heads that read the same rows as queries of one head, which reads them once.

    Each head has its own copy of the mask then: less than a copy of the keys up to as many queries
    as a key is wide.
    """
    _, heads, queries, _ = query_BNTH.shape
    shared_by = heads // key_BGSH.shape[1]
    if mask_BTS is not None:
        mask_BTS = mask_BTS.unsqueeze(1).expand(-1, shared_by, -1, -1).flatten(1, 2)
    out_BGXV = attend(
        query_BNTH.unflatten(1, (-1, shared_by)).flatten(2, 3),
        key_BGSH,
        value_BGSV,
        mask_BTS=mask_BTS,
        is_causal=False,
        scale=scale,
    )
    out_BNTV: Tensor = out_BGXV.unflatten(2, (shared_by, queries)).flatten(1, 2)
    return out_BNTV


def _repeated(x_BGSH: Tensor, times: int) -> Tensor:
    """Give every head of queries its keys or values, [B, N, S, H]."""
    if times == 1:
        return x_BGSH
    # Not repeat_interleave: it took a fifth of a small model's decoding.
    return x_BGSH.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)


class _Attention(torch.autograd.Function):
    """Both passes as kernels of our own.

    PyTorch's take several times as long on CPUs at the widths of small models: their products are
    too small for the matrix units.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_BNTH: Tensor,
        key_BNSH: Tensor,
        value_BNSV: Tensor,
        mask_BTS: Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        query_BNTH, key_BNSH = query_BNTH.contiguous(), key_BNSH.contiguous()
        value_BNSV = value_BNSV.contiguous()
        if mask_BTS is not None:
            mask_BTS = mask_BTS.expand(len(query_BNTH), -1, -1).contiguous()
        inputs = (query_BNTH, key_BNSH, value_BNSV, mask_BTS)
        out_BNTV, lse_BNT = attention_forward(*inputs, is_causal=is_causal, scale=scale)
        ctx.is_causal, ctx.scale = is_causal, scale
        ctx.save_for_backward(*inputs, out_BNTV, lse_BNT)
        return out_BNTV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNTV: Tensor) -> tuple[Tensor | None, ...]:
        query_BNTH, key_BNSH, value_BNSV, mask_BTS, out_BNTV, lse_BNT = ctx.saved_tensors
        grads = attention_backward(
            query_BNTH,
            key_BNSH,
            value_BNSV,
            mask_BTS,
            out_BNTV,
            lse_BNT,
            grad_BNTV.contiguous(),
            is_causal=ctx.is_causal,
            scale=ctx.scale,
        )
        return *grads, None, None, None
