"""Which slots of a cache hold rows of a proposer, and batches over its own sequences.

A proposer keeps its rows under the same slots as the target keeps its own: the row of a token hangs
on the tokens up to it alone, in both, so blocks that the target finds again, shares or copies are
right for the proposer too, and nobody allocates twice. It may lag behind, though, or have been
switched off: so each slot has a mark.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ziphius.core.device import send
from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Ints
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens


class SlotMarks:
    """Remembers the slots that hold a proposer's row of the token that lies there.

    Args:
        num_blocks: of the target's cache.
        block_size: its tokens.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._is_held = np.zeros(num_blocks * block_size, np.bool_)

    def slots(self, sequence: SequenceState, start: int, end: int) -> Ints:
        """Return where the tokens of a sequence from `start` to before `end` lie."""
        at = np.arange(start, end)
        blocks = np.array(sequence.blocks, np.int64)[at // self._block_size]
        return blocks * self._block_size + at % self._block_size

    def are_held(self, slots: Ints) -> npt.NDArray[np.bool_]:
        """Tell which of these hold a row."""
        return self._is_held[slots]

    def set(self, slots: Ints, *, held: bool) -> None:
        """Note that these hold a row, or that others' tokens are in their place."""
        self._is_held[slots] = held

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Follow a copy of blocks."""
        blocks = self._is_held.reshape(-1, self._block_size)
        blocks[list(targets)] = blocks[list(sources)]


def slot_batch(
    cache: PagedCache,
    ids_M: Sequence[int],
    tables: Sequence[Ints],
    counts: Sequence[int],
    device: torch.device,
    positions: Ints | None = None,
) -> ForwardBatch:
    """Lay out the last tokens of some sequences over a cache whose blocks are single slots.

    Args:
        cache: see `PagedCache.by_slot`.
        ids_M: new tokens, one sequence after the other.
        tables: slots of all tokens of each sequence, the new ones last.
        counts: new tokens of each.
        device: of the model.
        positions: of the new tokens, where they are not their places in the tables.

    Returns:
        A batch that asks for the logits of the last token of each sequence.
    """
    lengths = np.array([len(table) for table in tables])
    tables_ZJ = np.zeros((len(tables), lengths.max()), np.int64)
    for row, table in enumerate(tables):
        tables_ZJ[row, : len(table)] = table
    bounds = np.concatenate([[0], np.cumsum(counts)])
    if positions is None:
        firsts = lengths - counts
        positions = np.arange(bounds[-1]) + np.repeat(firsts - bounds[:-1], counts)
    slots = np.concatenate([t[-n:] for t, n in zip(tables, counts, strict=True)])
    paged = PagedTokens(
        cache,
        torch.from_numpy(bounds),
        torch.from_numpy(lengths),
        send(torch.from_numpy(slots), device),
        torch.from_numpy(tables_ZJ),
    )
    return ForwardBatch(
        send(torch.tensor(ids_M, dtype=torch.int64)[None], device),
        send(torch.from_numpy(positions)[None], device),
        paged=paged,
        logits_rows_L=send(torch.from_numpy(bounds[1:] - 1), device),
    )
