"""Softmax attention of queries over keys, through PyTorch's fused kernels.

Shapes: B sequences, N heads, T queries, S keys, H width of a query or key, V width of a value.
"""

import torch.nn.functional as F
from torch import Tensor


def attend(
    query_BNTH: Tensor,
    key_BNSH: Tensor,
    value_BNSV: Tensor,
    *,
    mask_BTS: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """Return the weighted values [B, N, T, V].

    Args:
        query_BNTH: queries.
        key_BNSH: keys; heads may be an expanded view.
        value_BNSV: values, V <= H.
        mask_BTS: bool, true where a query sees a key; None lets `is_causal` decide alone.
        is_causal: use the kernel's own causal mask; needs T = S.
        scale: factor on the scores before the softmax.
    """
    value_width = value_BNSV.shape[-1]
    # On a CPU the flash kernel wants equal widths; without the padding latent attention falls to a
    # path that keeps all scores in memory and is 4-5 times slower at 2,048 tokens.
    padding = query_BNTH.shape[-1] - value_width
    assert padding >= 0, "values wider than queries"
    if padding:
        value_BNSV = F.pad(value_BNSV, (0, padding))
    out_BNTH = F.scaled_dot_product_attention(
        query_BNTH,
        key_BNSH,
        value_BNSV,
        attn_mask=None if mask_BTS is None else mask_BTS[:, None],
        is_causal=is_causal,
        scale=scale,
    )
    return out_BNTH[..., :value_width]
