"""Which tokens one forward pass has, and where their cache is: training, prefill and decode alike.

Rows of training are [B, T], packed documents and shared beginnings included. The engine lays the
new tokens of all its sequences out in one row, [1, M]: whole prompts, pieces of prompts and single
tokens beside each other, without padding.

Shapes: B rows, T tokens of a row, M new tokens of a flat batch, Z sequences, J blocks of the
longest sequence, L rows whose logits are wanted, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius.models.cache import PagedCache


@dataclass(frozen=True)
class PagedTokens:
    """Where a flat batch writes its new tokens in a cache of blocks, and what it reads there.

    New tokens `cu_seqlens_Z1[z]` to `cu_seqlens_Z1[z + 1]` of the row are the last ones of sequence
    z, which has `seq_lens_Z[z]` tokens then. Token p of the sequence lies in slot
    `block_tables_ZJ[z, p // block_size] * block_size + p % block_size`. All tensors lie on the CPU
    but the slots, which lie beside the cache.
    """

    cache: PagedCache
    cu_seqlens_Z1: Tensor
    """int64 [Z + 1], from 0 to M; every sequence has at least one new token."""
    seq_lens_Z: Tensor
    """int64 [Z], new tokens included."""
    slot_mapping_M: Tensor
    """int64 [M]: where each new token is written; no slot twice."""
    block_tables_ZJ: Tensor
    """int64 [Z, J]; entries behind a sequence's last block are never read. Sequences may share
    blocks that none of them writes to."""

    def positions_M(self) -> Tensor:
        """Count on from the tokens that each sequence had before, on the CPU."""
        new_Z = self.cu_seqlens_Z1.diff()
        # What token 0 of a sequence would have as its index in the row.
        before_Z = self.cu_seqlens_Z1[1:] - self.seq_lens_Z
        return torch.arange(len(self.slot_mapping_M)) - before_Z.repeat_interleave(new_Z)


@dataclass(frozen=True)
class ForwardBatch:
    """The tokens of one forward pass."""

    input_ids_BT: Tensor
    """int64; [1, M] where `paged` is given."""
    positions_BT: Tensor | None = None
    """By default they go on from the cache, or count from 0, anew in every document; a branch goes
    on from its trunk."""
    documents_BT: Tensor | None = None
    """Document of each token of a packed row (runs of equal numbers); documents never see each
    other. A negative number is padding, which no expert gets. Not together with a cache."""
    branches_BT: Tensor | None = None
    """Branch of each token within its document (`models/segments.py`): sequences that share their
    beginning, in a single row. Only beside documents."""
    paged: PagedTokens | None = None
    """The cache of a flat batch. None: every row is read from its first token on."""
    logits_rows_L: Tensor | None = None
    """int64 [L]: rows of a flat batch whose logits are wanted, such as each sequence's last. None:
    all."""
    routes: Mapping[int, Tensor] = field(default_factory=dict)
    """By index of an expert layer: the experts [B, T, K] that the tokens are sent to, as an earlier
    pass chose them; the other layers choose."""
    first_row: int = 0
    """Number of the first row in its step, for `ModelConfig.capacity_factor`."""

    def __post_init__(self) -> None:
        if self.branches_BT is not None and self.documents_BT is None:
            raise ValueError("branches without documents: say which document each token is of")
        if self.paged is None:
            return
        if self.documents_BT is not None:
            raise ValueError("documents beside a cache: the sequences of a flat batch are apart")
        rows, tokens = self.input_ids_BT.shape
        counted = int(self.paged.cu_seqlens_Z1[-1])
        if rows != 1 or not tokens == counted == len(self.paged.slot_mapping_M):
            raise ValueError(
                f"a flat batch of {counted} tokens and {len(self.paged.slot_mapping_M)} slots has "
                f"ids [{rows}, {tokens}]: they are one row, a slot for each"
            )
