"""Which token each position has to predict, and which positions count.

Shapes: B sequences, T tokens.
"""

import torch
from torch import Tensor


def shift_left(ids_BT: Tensor, places: int) -> Tensor:
    """Return the token `places` ahead of each position; the last places are filled with 0."""
    shifted_BT = torch.zeros_like(ids_BT)
    if places < ids_BT.shape[1]:
        shifted_BT[:, : ids_BT.shape[1] - places] = ids_BT[:, places:]
    return shifted_BT


def rows_that_count(counts_BT: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return of each tensor [B, T, ...] the rows where `counts_BT` is true, [X, ...].

    The same as `x_BTD[counts_BT]`, whose gradient a CPU adds up one number at a time, and for which
    the host waits anew with every tensor.
    """
    places_X = counts_BT.flatten().nonzero().squeeze(1)
    return tuple(tensor.flatten(0, 1).index_select(0, places_X) for tensor in tensors)


def targets_ahead(
    ids_BT: Tensor,
    places: int,
    *,
    documents_BT: Tensor | None = None,
    loss_mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the targets `places` ahead, and the bool mask of positions that count.

    Args:
        ids_BT: tokens.
        places: 1 for the next token, 1 + k for depth k of multi-token prediction.
        documents_BT: document of each token; a target in another document does not count.
        loss_mask_BT: bool, true where a token counts in the loss (a completion); all without it.
    """
    length = ids_BT.shape[1]
    counts_BT = torch.arange(length, device=ids_BT.device).expand_as(ids_BT) < length - places
    if documents_BT is not None:
        counts_BT = counts_BT & (shift_left(documents_BT, places) == documents_BT)
    if loss_mask_BT is not None:
        counts_BT = counts_BT & shift_left(loss_mask_BT, places)
    return shift_left(ids_BT, places), counts_BT
