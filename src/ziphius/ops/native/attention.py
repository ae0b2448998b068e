"""Kernels of `attention.cpp`: softmax attention of heads that lie one after the other.

Shapes: B sequences, N heads, T queries, S keys, H width of a query or key, V width of a value.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, optional_address, own_address

_SIZES = (
    "int64_t heads_per_mask, int64_t heads, int64_t queries, int64_t keys, int64_t width, "
    "int64_t value_width, int causal, float scale"
)
_ATTENTION_FORWARD = Kernel(
    "attention_forward",
    "const T* query, const T* key, const T* value, const uint8_t* mask, T* out, float* lse, "
    + _SIZES,
)
_ATTENTION_BACKWARD = Kernel(
    "attention_backward",
    "const T* query, const T* key, const T* value, const T* out, const T* grad, const float* lse, "
    "const uint8_t* mask, T* grad_query, T* grad_key, T* grad_value, " + _SIZES,
)


def attention_forward(
    query_BNTH: Tensor,
    key_BNSH: Tensor,
    value_BNSV: Tensor,
    mask_BTS: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the weighted values [B, N, T, V] and float32 log sum exp of each row of scores.

    Args:
        query_BNTH: queries.
        key_BNSH: keys.
        value_BNSV: values.
        mask_BTS: bool, true where a query sees a key; None lets `is_causal` decide alone.
        is_causal: let query t see the keys up to t; needs T = S.
        scale: factor on the scores.
    """
    lead, keys, width = query_BNTH.shape[:3], key_BNSH.shape[2], value_BNSV.shape[3]
    out_BNTV = query_BNTH.new_empty(*lead, width)
    lse_BNT = query_BNTH.new_empty(lead, dtype=torch.float32)
    inputs = _inputs(query_BNTH, key_BNSH, value_BNSV, mask_BTS, is_causal=is_causal)
    _ATTENTION_FORWARD.of(query_BNTH.dtype)(
        *inputs,
        own_address(out_BNTV),
        own_address(lse_BNT),
        *_sizes(query_BNTH, keys, width),
        *(is_causal, scale),
    )
    return out_BNTV, lse_BNT


def attention_backward(
    query_BNTH: Tensor,
    key_BNSH: Tensor,
    value_BNSV: Tensor,
    mask_BTS: Tensor | None,
    out_BNTV: Tensor,
    lse_BNT: Tensor,
    grad_BNTV: Tensor,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    Args: as of `attention_forward`, its results, and the gradient of the first.
    """
    lead, keys, width = query_BNTH.shape[:3], key_BNSH.shape[2], value_BNSV.shape[3]
    dtype, shape = query_BNTH.dtype, (*lead, width)
    query, key, value, mask = _inputs(
        query_BNTH, key_BNSH, value_BNSV, mask_BTS, is_causal=is_causal
    )
    grads = [torch.empty_like(x) for x in (query_BNTH, key_BNSH, value_BNSV)]
    _ATTENTION_BACKWARD.of(dtype)(
        *(query, key, value),
        address("result of attention", out_BNTV, dtype, shape),
        address("gradient of attention", grad_BNTV, dtype, shape),
        address("log sums of attention", lse_BNT, torch.float32, lead),
        mask,
        *(own_address(grad) for grad in grads),
        *_sizes(query_BNTH, keys, width),
        *(is_causal, scale),
    )
    grad_query_BNTH, grad_key_BNSH, grad_value_BNSV = grads
    return grad_query_BNTH, grad_key_BNSH, grad_value_BNSV


def _inputs(
    query_BNTH: Tensor,
    key_BNSH: Tensor,
    value_BNSV: Tensor,
    mask_BTS: Tensor | None,
    *,
    is_causal: bool,
) -> tuple[int, int, int, int | None]:
    (batch, heads, queries, width), dtype = query_BNTH.shape, query_BNTH.dtype
    keys, value_width = value_BNSV.shape[2:]
    if is_causal and queries != keys:
        raise ValueError(f"causal attention needs a key for each query; {queries} have {keys}.")
    return (
        address("queries", query_BNTH, dtype, query_BNTH.shape),
        address("keys", key_BNSH, dtype, (batch, heads, keys, width)),
        address("values", value_BNSV, dtype, (batch, heads, keys, value_width)),
        optional_address("mask", mask_BTS, torch.bool, (batch, queries, keys)),
    )


def _sizes(query_BNTH: Tensor, keys: int, value_width: int) -> tuple[int, ...]:
    batch, heads, queries, width = query_BNTH.shape
    return heads, batch * heads, queries, keys, width, value_width
