"""What every loader hands to the training loop.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ziphius.core.device import send


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with what the losses and the report need to know about them."""

    ids_BT: Tensor
    """int64."""
    documents_BT: Tensor
    """int64, number of the document within its row; -1 only on padding, which rows of running text
    never have."""
    loss_mask_BT: Tensor | None = None
    """bool, true where a token counts in the loss; None when all do."""
    bytes_count: int = 0
    """UTF-8 bytes of the tokens that are predicted: those to be learned that have a predecessor in
    their document and row. 0 if unknown."""
    domains: tuple[str, ...] = ()
    """Domain of each row."""

    @property
    def tokens(self) -> int:
        """Count all tokens, learned or not; padding is none."""
        return int((self.documents_BT >= 0).sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        loss_mask_BT = None if self.loss_mask_BT is None else send(self.loss_mask_BT, device)
        return replace(
            self,
            ids_BT=send(self.ids_BT, device),
            documents_BT=send(self.documents_BT, device),
            loss_mask_BT=loss_mask_BT,
        )
