"""Documents become rows of exactly T tokens: concatenated in a permuted order, and cut.

Nothing is padded and nothing is dropped but the tail of an epoch that is shorter than one row. A
document that crosses the edge of a row goes on in the next row as a document of its own: its tokens
are all learned, but the first part is out of sight. (Best-fit packing, arXiv 2404.10830, would cut
fewer documents; where documents are longer than the context, as code is here, it must cut them
too, and it leaves padding.) Attention and losses keep to a document by its number.

Shapes: N documents of a split, T tokens of a row.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ziphius.data.shards import Split


def permutation(size: int, *names: int) -> NDArray[np.int64]:
    """Draw a permutation from integers alone.

    NumPy promises the raw bits of a bit generator for ever, but not what its `permutation` makes
    of them; sorting the bits keeps runs repeatable across its versions.
    """
    bits = np.random.PCG64(np.random.SeedSequence(list(names))).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)


class Packing:
    """The rows of one split in one order of its documents."""

    def __init__(self, split: Split, seq_len: int, order_N: NDArray[np.int64]) -> None:
        self._split, self._seq_len, self._order_N = split, seq_len, order_N
        self._ends_N = np.cumsum(split.lengths_N[order_N])
        self.rows = count_rows(split, seq_len)

    @cached_property
    def cut_documents(self) -> int:
        """Count the documents that the edge of a row tears apart."""
        starts_N = self._ends_N - self._split.lengths_N[self._order_N]
        return int(np.sum(starts_N // self._seq_len != (self._ends_N - 1) // self._seq_len))

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids and the document numbers of a row, both of T entries.

        A row that lies beyond the whole ones is padded with id 0 and document -1.
        """
        ids_T = np.zeros(self._seq_len, dtype=np.int64)
        documents_T = np.full(self._seq_len, -1, dtype=np.int64)
        position = index * self._seq_len
        document = int(np.searchsorted(self._ends_N, position, side="right"))
        filled = number = 0
        while filled < self._seq_len and document < len(self._order_N):
            source = int(self._order_N[document])
            left = int(self._ends_N[document]) - position
            count = min(left, self._seq_len - filled)
            start = int(self._split.lengths_N[source]) - left
            ids_T[filled : filled + count] = self._split.tokens(source, start, count)
            documents_T[filled : filled + count] = number
            filled, position = filled + count, position + count
            document, number = document + 1, number + 1
        return ids_T, documents_T


def count_rows(split: Split, seq_len: int) -> int:
    """Count the whole rows that a split fills."""
    return split.counts.tokens // seq_len


def count_long(split: Split, seq_len: int) -> int:
    """Count the documents that no row can hold whole."""
    return int(np.sum(split.lengths_N > seq_len))
