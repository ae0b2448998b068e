"""Batches as a pure function of (seed, step): the position in the data is one number.

Every row of a run has a number g = 0, 1, 2, ... Three lookups turn it into tokens:

1. g -> (domain, n): blocks of 1,000 rows hold each domain exactly as often as the mix says, spread
   evenly over the block, so that every stretch of a run has the mix's ratios;
2. n -> (epoch, row): an epoch of a domain ends when all its rows were seen; the next one has
   another order of documents and other cuts;
3. row -> tokens: `data.packing`.

Micro-batches and ranks only share out the numbers of a step: chunk `micro * world_size + rank` of
its rows in order, so any split of a step is the same rows.

Shapes: B rows, T tokens.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.data.document import fraction
from ziphius.data.errors import DataError
from ziphius.data.packing import Packing, count_rows, permutation
from ziphius.data.prepare import PreparedData

BLOCK_ROWS = 1_000

Rows = Callable[[int], range]
"""Numbers of the rows of a step; those of all steps together are 0, 1, 2, ... without a gap."""


class Loader(Protocol):
    """A source of batches that keeps no state: what it returns depends on the arguments alone."""

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Return micro-batch `micro` of this rank's part of a step."""
        ...

    def micros(self, step: int, world_size: int) -> int:
        """Count the micro-batches of each rank in a step."""
        ...

    def tokens_per_step(self, step: int) -> int:
        """Count the tokens of a step, over all ranks."""
        ...


def fixed_rows(count: int) -> Rows:
    """Give every step the same number of rows."""
    return lambda step: range(step * count, (step + 1) * count)


class MixLoader:
    """Rows of a mix of domains, packed.

    Args:
        data: the tokenized domains and their shares.
        seq_len: tokens of a row.
        seed: decides the order of everything.
        rows: the rows of each step, which is where a batch size that grows comes in; a plain
            number for steps of equal size.
        micro_batch_size: rows of a micro-batch; a step's rows are a multiple of it times the ranks.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        seq_len: int,
        seed: int,
        rows: Rows | int,
        micro_batch_size: int,
    ) -> None:
        self.data, self.seq_len, self.seed = data, seq_len, seed
        self.micro_batch_size = micro_batch_size
        self.rows = fixed_rows(rows) if isinstance(rows, int) else rows
        self.domains = tuple(data.shares)
        self.epoch_rows = {
            name: count_rows(data.domains[name].train, seq_len) for name in self.domains
        }
        for name, count in self.epoch_rows.items():
            if count == 0:
                raise DataError(
                    f"The domain {name} has {data.domains[name].train.counts.tokens} tokens, fewer "
                    f"than one row of {seq_len}. Give more text or a shorter seq_len."
                )
        self._counts = _block_counts(tuple(data.shares.values()))
        self._streams = [int(fraction("stream", name) * 2**32) for name in self.domains]
        # Two epochs of each domain: around the end of one, batches alternate between them.
        self._packing = lru_cache(maxsize=2 * len(self.domains))(self._packing_of)
        self._block = lru_cache(maxsize=4)(self._block_of)

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Return micro-batch `micro` of this rank's part of a step."""
        numbers = self.rows(step)
        if not 0 <= micro < self.micros(step, world_size):
            raise IndexError(f"step {step} has no micro-batch {micro}")
        first = (micro * world_size + rank) * self.micro_batch_size
        return self.rows_of(numbers[first : first + self.micro_batch_size])

    def micros(self, step: int, world_size: int) -> int:
        """Count the micro-batches of each rank in a step."""
        rows, share = len(self.rows(step)), self.micro_batch_size * world_size
        if rows == 0 or rows % share:
            raise ConfigError(
                f"Step {step} has {rows} rows, which {world_size} ranks cannot share in "
                f"micro-batches of {self.micro_batch_size} rows. Choose a multiple of {share}."
            )
        return rows // share

    def tokens_per_step(self, step: int) -> int:
        """Count the tokens of a step, over all ranks."""
        return len(self.rows(step)) * self.seq_len

    def rows_of(self, numbers: range) -> Batch:
        """Return any rows by their numbers, as one batch."""
        return self._batch([self.place(number) for number in numbers])

    def domain_rows(self, name: str, numbers: range) -> Batch:
        """Return rows of one domain in the order in which a run comes to them."""
        return self._batch([(self.domains.index(name), n) for n in numbers])

    def place(self, number: int) -> tuple[int, int]:
        """Say which domain a row comes from, and how many rows of that domain came before."""
        block, position = divmod(number, BLOCK_ROWS)
        domains, before = self._block(block)
        domain = int(domains[position])
        return domain, block * self._counts[domain] + int(before[position])

    def given(self, rows: int) -> dict[str, int]:
        """Count the tokens that each domain gave to the first `rows` rows of a run."""
        whole, rest = divmod(rows, BLOCK_ROWS)
        partial = Counter(self._block(whole)[0][:rest].tolist())
        return {
            name: (whole * self._counts[i] + partial[i]) * self.seq_len
            for i, name in enumerate(self.domains)
        }

    def epochs(self, rows: int) -> dict[str, float]:
        """Say how often each domain was gone through after the first `rows` rows of a run."""
        return {
            name: tokens / (self.epoch_rows[name] * self.seq_len)
            for name, tokens in self.given(rows).items()
        }

    def _batch(self, places: list[tuple[int, int]]) -> Batch:
        rows = [self._row(domain, n) for domain, n in places]
        ids_BT = np.stack([ids_T for ids_T, _ in rows])
        documents_BT = np.stack([documents_T for _, documents_T in rows])
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            documents_BT=torch.from_numpy(documents_BT),
            bytes_count=self.data.predicted_bytes(ids_BT, documents_BT),
            domains=tuple(self.domains[domain] for domain, _ in places),
        )

    def _row(self, domain: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        epoch, index = divmod(n, self.epoch_rows[self.domains[domain]])
        packing, order = self._packing(domain, epoch)
        return packing.row(int(order[index]))

    def _packing_of(self, domain: int, epoch: int) -> tuple[Packing, NDArray[np.int64]]:
        """Order the documents of an epoch, and then its rows: long documents fill many of them."""
        split = self.data.domains[self.domains[domain]].train
        names = (self.seed, self._streams[domain], epoch)
        packing = Packing(split, self.seq_len, permutation(split.counts.documents, *names, 0))
        return packing, permutation(packing.rows, *names, 1)

    def _block_of(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the domain of each row of a block, and the rows of that domain before it."""
        domains = np.repeat(np.arange(len(self._counts)), self._counts)
        before = np.concatenate([np.arange(count) for count in self._counts])
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, block, 2])).random_raw(BLOCK_ROWS)
        # Domain i has counts[i] equal stretches of the block, and one row somewhere in each.
        places = (before + bits / 2**64) / np.repeat(self._counts, self._counts)
        order = np.argsort(places, kind="stable")
        return domains[order], before[order]


def _block_counts(shares: tuple[float, ...]) -> list[int]:
    """Share out the rows of a block: whole numbers by largest remainder, at least one each."""
    exact = [share * BLOCK_ROWS for share in shares]
    counts = [max(1, int(value)) for value in exact]
    while sum(counts) < BLOCK_ROWS:
        counts[max(range(len(exact)), key=lambda i: exact[i] - counts[i])] += 1
    while sum(counts) > BLOCK_ROWS:
        counts[counts.index(max(counts))] -= 1
    return counts
