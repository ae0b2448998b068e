"""Sequences that begin and end together, each in a block of its own: a cache without a pool.

Shapes: M new tokens, L sequences that go on, R sequences, J = 1 block of each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.model import Model


class Sequences:
    """The cache of `count` sequences of up to `capacity` tokens each; block r is sequence r's.

    Args:
        model: whose layers decide what is kept; the cache has its dtype and device.
        count: sequences.
        capacity: tokens of the longest.
    """

    def __init__(self, model: Model, count: int, capacity: int) -> None:
        self.capacity = capacity
        self.cache = model.new_cache(count, capacity)
        self.lengths_R = torch.zeros(count, dtype=torch.int64)
        """Tokens held, on the CPU; set lower to forget the last ones."""

    def extend(self, rows: Sequence[int], new: Sequence[int], ids_M: Tensor) -> ForwardBatch:
        """Lay out the next tokens of some sequences, and count them as held.

        Args:
            rows: which sequences.
            new: how many tokens each of them gets.
            ids_M: the tokens, one sequence's behind the other's.

        Returns:
            A batch whose logits are wanted of each sequence's last token.
        """
        rows_L, new_L = torch.tensor(rows), torch.tensor(new)
        lengths_L = self.lengths_R[rows_L] + new_L
        longest = int(lengths_L.max())
        assert longest <= self.capacity, (
            f"a block of {self.capacity} tokens asked to hold {longest}"
        )
        ends_L = new_L.cumsum(0)
        shift_L = rows_L * self.capacity + lengths_L - ends_L
        slots_M = torch.arange(len(ids_M)) + shift_L.repeat_interleave(new_L)
        cu_seqlens_Z1 = torch.cat((ends_L.new_zeros(1), ends_L))
        self.lengths_R[rows_L] = lengths_L
        paged = PagedTokens(self.cache, cu_seqlens_Z1, lengths_L, slots_M, rows_L[:, None])
        return ForwardBatch(ids_M[None], paged=paged, logits_rows_L=ends_L - 1)

    def rows(self, ids_BT: Tensor) -> ForwardBatch:
        """Lay out the next T tokens of all sequences."""
        rows, tokens = ids_BT.shape
        return self.extend(range(rows), [tokens] * rows, ids_BT.flatten())

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Let other sequences hold what one of them holds."""
        self.cache.copy_blocks([source] * len(targets), targets)
        self.lengths_R[list(targets)] = int(self.lengths_R[source])
