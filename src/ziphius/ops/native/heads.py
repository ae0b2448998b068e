"""Kernels of `heads.cpp`: from projections to the heads of attention and back, rotated.

Shapes: B sequences, T tokens, N heads, P no-rope, R rotated width, r = R/2, H = P + R, V value,
X = P + V; M tokens of all sequences in one row.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, own_address, row_address

_LATENT_QUERIES = Kernel(
    "latent_queries",
    "const T* from, T* to, const float* cosine, const float* sine, int64_t batch, int64_t tokens, "
    "int64_t heads, int64_t nope, int64_t rope, int backward",
)
_ROTATE = Kernel(
    "rotate",
    "const T* from, T* to, const float* cosine, const float* sine, int64_t tokens, int64_t heads, "
    "int64_t half, int64_t stride, int halves, int backward",
)
_LATENT_KEYS = Kernel(
    "latent_keys",
    "const T* expanded, const T* shared, T* keys, T* values, int64_t batch, int64_t tokens, "
    "int64_t heads, int64_t nope, int64_t rope, int64_t value",
)
_LATENT_KEYS_BACKWARD = Kernel(
    "latent_keys_backward",
    "const T* grad_keys, const T* grad_values, T* grad_expanded, T* grad_shared, int64_t batch, "
    "int64_t tokens, int64_t heads, int64_t nope, int64_t rope, int64_t value",
)


def latent_queries(from_: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, *, backward: bool) -> Tensor:
    """Rotate the last 2r numbers of queries [B, T, N, H] and put heads first, [B, N, T, H].

    Args:
        from_: the queries, or with `backward` their gradient [B, N, T, H], which is put back.
        cos_BTr: float32.
        sin_BTr: float32.
        backward: rotate back and put tokens first.
    """
    batch, second, third, width = from_.shape
    (tokens, heads), (*_, pairs) = (third, second) if backward else (second, third), cos_BTr.shape
    to = from_.new_empty(batch, third, second, width)
    dtype, angles = from_.dtype, (batch, tokens, pairs)
    if 2 * pairs > width:
        raise ValueError(f"queries of width {width} have no {2 * pairs} numbers to rotate.")
    _LATENT_QUERIES.of(dtype)(
        address("queries", from_, dtype, from_.shape),
        own_address(to),
        address("cosines", cos_BTr, torch.float32, angles),
        address("sines", sin_BTr, torch.float32, angles),
        *(batch, tokens, heads, width - 2 * pairs, 2 * pairs, backward),
    )
    return to


def rotate(
    x_BTNR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, *, halves: bool, backward: bool
) -> Tensor:
    """Rotate x_i with x_(i + r) or, without `halves`, neighbouring pairs.

    Args:
        x_BTNR: may be columns of wider rows.
        cos_BTr: float32, R = 2r.
        sin_BTr: float32.
        halves: which numbers are rotated with which.
        backward: rotate back.
    """
    (batch, tokens, heads, width), dtype = x_BTNR.shape, x_BTNR.dtype
    rows_MX = x_BTNR.flatten(2).flatten(0, 1)  # a view of the columns of a projection stays one
    if rows_MX.stride(1) != 1 or rows_MX.stride(0) < rows_MX.shape[1]:
        rows_MX = rows_MX.contiguous()
    if width % 2:
        raise ValueError(f"a width of {width} cannot be rotated in pairs.")
    angles = (batch, tokens, width // 2)
    out_BTNR = x_BTNR.new_empty(x_BTNR.shape)
    place, stride = row_address("rows of rotate", rows_MX, dtype, (batch * tokens, heads * width))
    _ROTATE.of(dtype)(
        place,
        own_address(out_BTNR),
        address("cosines", cos_BTr, torch.float32, angles),
        address("sines", sin_BTr, torch.float32, angles),
        *(batch * tokens, heads, width // 2, stride, halves, backward),
    )
    return out_BTNR


def latent_keys(expanded_BTNX: Tensor, shared_BTR: Tensor, nope: int) -> tuple[Tensor, Tensor]:
    """Return keys [B, N, T, P + R] and values [B, N, T, V].

    Args:
        expanded_BTNX: per head P numbers of the key, then V of the value.
        shared_BTR: the last R of every head's key.
        nope: P.
    """
    (batch, tokens, heads, width), dtype = expanded_BTNX.shape, expanded_BTNX.dtype
    rope, value = shared_BTR.shape[-1], width - nope
    if not 0 <= nope <= width:
        raise ValueError(f"keys take {nope} of {width} numbers of a head.")
    key_BNTH = expanded_BTNX.new_empty(batch, heads, tokens, nope + rope)
    value_BNTV = expanded_BTNX.new_empty(batch, heads, tokens, value)
    _LATENT_KEYS.of(dtype)(
        address("expanded latents", expanded_BTNX, dtype, expanded_BTNX.shape),
        address("shared keys", shared_BTR, dtype, (batch, tokens, rope)),
        own_address(key_BNTH),
        own_address(value_BNTV),
        *(batch, tokens, heads, nope, rope, value),
    )
    return key_BNTH, value_BNTV


def latent_keys_backward(
    grad_key_BNTH: Tensor, grad_value_BNTV: Tensor, nope: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of what `latent_keys` takes."""
    (batch, heads, tokens, width), dtype = grad_key_BNTH.shape, grad_key_BNTH.dtype
    rope, value = width - nope, grad_value_BNTV.shape[-1]
    if not 0 <= nope <= width:
        raise ValueError(f"{nope} of {width} numbers of a key come from the latent.")
    grad_expanded_BTNX = grad_key_BNTH.new_empty(batch, tokens, heads, nope + value)
    grad_shared_BTR = grad_key_BNTH.new_empty(batch, tokens, rope)
    _LATENT_KEYS_BACKWARD.of(dtype)(
        address("keys' gradient", grad_key_BNTH, dtype, grad_key_BNTH.shape),
        address("values' gradient", grad_value_BNTV, dtype, (batch, heads, tokens, value)),
        own_address(grad_expanded_BTNX),
        own_address(grad_shared_BTR),
        *(batch, tokens, heads, nope, rope, value),
    )
    return grad_expanded_BTNX, grad_shared_BTR
