"""Flat batches over a cache of blocks, for tests of what reads and writes one."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ziphius.engine.runner import RunnerOutput
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.model import Model


def paged_cache(
    model: Model, blocks: int, block_size: int, dtype: torch.dtype, *, empty: float = torch.nan
) -> PagedCache:
    """Make a cache for all layers of a model, filled with what nobody may read."""
    specs = [layer.self_attn.spec.cache for layer in model.model.layers]
    cache = PagedCache(specs, blocks, block_size, dtype=dtype)
    for parts in cache.parts:
        for part in parts:
            # In 8 bits all bits set is a NaN, of scales too.
            part.fill_(255 * (empty != empty) if cache.has_scales else empty)
    return cache


class Sequences:
    """Sequences of one cache: their ids, how many tokens are computed, and their blocks."""

    def __init__(
        self,
        cache: PagedCache,
        ids: Sequence[Tensor],
        seed: int = 0,
        adapters: Sequence[str] | None = None,
    ) -> None:
        self.cache, self.ids, self.adapters = cache, ids, adapters
        self.computed = [0] * len(ids)
        blocks = [-(-len(row) // cache.block_size) for row in ids]
        assert sum(blocks) <= cache.num_blocks
        order = torch.randperm(cache.num_blocks, generator=torch.Generator().manual_seed(seed))
        self.tables = list(order[: sum(blocks)].split(blocks))

    def batch(self, counts: Sequence[tuple[int, int]]) -> ForwardBatch:
        """Take the next tokens of some sequences: pairs of a sequence and how many."""
        size = self.cache.block_size
        ids, slots, lengths, tables = [], [], [], []
        for row, count in counts:
            places = torch.arange(self.computed[row], self.computed[row] + count)
            ids.append(self.ids[row][places])
            slots.append(self.tables[row][places // size] * size + places % size)
            self.computed[row] += count
            lengths.append(self.computed[row])
            tables.append(self.tables[row])
        starts = torch.tensor([0, *(count for _, count in counts)]).cumsum(0)
        # What lies behind a sequence's last block is never read.
        padding = self.cache.num_blocks + 7
        table_ZJ = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True, padding_value=padding)
        paged = PagedTokens(
            self.cache, starts, torch.tensor(lengths), torch.cat(slots), table_ZJ.contiguous()
        )
        adapters_Z = None
        if self.adapters is not None:
            adapters_Z = tuple(self.adapters[row] for row, _ in counts)
        return ForwardBatch(torch.cat(ids)[None], paged=paged, adapters_Z=adapters_Z)

    @property
    def left(self) -> list[int]:
        """Count the tokens of each sequence that are not computed yet."""
        return [len(row) - done for row, done in zip(self.ids, self.computed, strict=True)]


def logits_of(
    runner: Callable[[ForwardBatch], RunnerOutput],
    sequences: Sequences,
    chunks: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Run all tokens and return the logits [tokens, W] of each sequence.

    Args:
        runner: of the sequences' cache.
        sequences: none of whose tokens is computed.
        chunks: sizes to cut the sequences into at random, in any mix and order of them; by default
            each is run whole and alone.
        seed: decides the mixes.
    """
    rng = random.Random(seed)
    found: list[list[Tensor]] = [[] for _ in sequences.ids]
    while any(sequences.left):
        rows = [row for row, left in enumerate(sequences.left) if left]
        rows = rng.sample(rows, rng.randint(1, len(rows))) if chunks else rows[:1]
        left = [sequences.left[row] for row in rows]
        sizes = [min(rng.choice(chunks), most) for most in left] if chunks else left
        counts = list(zip(rows, sizes, strict=True))
        logits_LW = runner(sequences.batch(counts)).logits_LW.clone()
        for (row, _), part_LW in zip(counts, logits_LW.split([n for _, n in counts]), strict=True):
            found[row].append(part_LW)
    return [torch.cat(parts) for parts in found]
