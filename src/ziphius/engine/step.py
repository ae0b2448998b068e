"""The arrays of a step: kept, and moved on in place, for the sequences that decode.

A decoding sequence has a row here. While no sequence joins or leaves, a step costs a handful of
additions on whole columns, and the very same `ForwardBatch` is handed out again, over the same
memory: it is valid until the next step. Pieces of prompts are laid behind the rows, for one step.

Shapes: Z sequences of the step, rows first, J blocks of the longest one, M tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ziphius.core.device import send
from ziphius.engine.sequence import SequenceState
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a prompt that one step computes."""

    sequence: SequenceState
    num_tokens: int


class StepArrays:
    """Columns over the sequences that decode, dense: the last one takes the place of one that left.

    Args:
        cache: that the batches are for.
        max_num_seqs: rows at most, chunks of the same step included.
        device: where the model wants its ids and slots.
    """

    def __init__(self, cache: PagedCache, max_num_seqs: int, device: torch.device) -> None:
        self.sequences: list[SequenceState] = []
        """By row."""
        self._cache = cache
        self._device = device
        self._block_size = cache.block_size
        self._ids: Ints = np.zeros(max_num_seqs, np.int64)
        self._positions: Ints = np.zeros(max_num_seqs, np.int64)
        self._slots: Ints = np.zeros(max_num_seqs, np.int64)
        self._lengths: Ints = np.zeros(max_num_seqs, np.int64)
        self.last_times: npt.NDArray[np.float64] = np.zeros(max_num_seqs)
        """When each row got its last token."""
        self._tables: Ints = np.zeros((max_num_seqs, 8), np.int64)
        self._ones: Ints = np.arange(max_num_seqs + 1)
        self._seats: list[int] | None = None
        self._steady: ForwardBatch | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def seats(self) -> list[int]:
        """Seats of the rows, in their order; the same list while they stay the same."""
        if self._seats is None:
            self._seats = [sequence.seat for sequence in self.sequences]
        return self._seats

    @property
    def lengths(self) -> Ints:
        """Tokens of the rows, those of this step included: where the drawn one will stand."""
        return self._lengths[: len(self.sequences)]

    def add(self, sequence: SequenceState) -> None:
        """Give a row to a sequence that decodes from now on: all of its tokens but one are done."""
        row = len(self.sequences)
        self.sequences.append(sequence)
        sequence.row = row
        length = len(sequence.tokens)
        self._ids[row] = sequence.tokens[-1]
        self._positions[row] = position = length - 1
        self._lengths[row] = length
        self.last_times[row] = sequence.last_token_time
        self._set_table(row, sequence.blocks)
        if position // self._block_size < len(sequence.blocks):
            block = sequence.blocks[position // self._block_size]
            self._slots[row] = block * self._block_size + position % self._block_size
        self._seats = self._steady = None

    def remove(self, sequence: SequenceState) -> None:
        """Take a sequence out; the last row moves into its place."""
        row, last = sequence.row, len(self.sequences) - 1
        if row != last:
            moved = self.sequences[row] = self.sequences[last]
            moved.row = row
            for column in (
                self._ids,
                self._positions,
                self._lengths,
                self._slots,
                self.last_times,
                self._tables,
            ):
                column[row] = column[last]
        self.sequences.pop()
        sequence.row = -1
        self._seats = self._steady = None

    @property
    def num_drawn(self) -> int:
        """Tokens of the rows that are drawn behind, drafts included."""
        return sum(1 + len(sequence.drafts) for sequence in self.sequences)

    def rows_at_edge(self) -> Ints:
        """Return the rows whose next token begins a block."""
        return np.flatnonzero(self._positions[: len(self.sequences)] % self._block_size == 0)

    def set_table(self, sequence: SequenceState) -> None:
        """Let a row read and write all blocks of its sequence."""
        self._set_table(sequence.row, sequence.blocks)

    def set_block(self, sequence: SequenceState) -> None:
        """Let a row at the edge go on in the last block of its sequence, a new one."""
        row, place = sequence.row, len(sequence.blocks) - 1
        if place >= self._tables.shape[1]:
            self._widen(place + 1)
        self._tables[row, place] = block = sequence.blocks[place]
        self._slots[row] = block * self._block_size

    def advance(self, ids: Ints, now: float) -> None:
        """Put the token down that every row has just drawn."""
        rows = len(self.sequences)
        self._ids[:rows] = ids
        self._positions[:rows] += 1
        self._lengths[:rows] += 1
        self._slots[:rows] += 1
        self.last_times[:rows] = now

    def settle(self, now: float) -> None:
        """Put down that the rows have got any number of tokens, the last of each not computed."""
        rows = len(self.sequences)
        self._ids[:rows] = [sequence.tokens[-1] for sequence in self.sequences]
        self._lengths[:rows] = [len(sequence.tokens) for sequence in self.sequences]
        self._positions[:rows] = positions = self._lengths[:rows] - 1
        # At the edge of a block there is no next one yet: `set_block` says it.
        places = np.minimum(positions // self._block_size, self._tables.shape[1] - 1)
        blocks = self._tables[np.arange(rows), places]
        self._slots[:rows] = blocks * self._block_size + positions % self._block_size
        self.last_times[:rows] = now

    def batch(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        """Return what the model has to compute in this step.

        Logits are wanted of the last token of each sequence, of all tokens of a row with drafts
        (`SequenceState.drafts`), and of all tokens of a chunk whose prompt is to be scored.
        """
        if not chunks and not any(sequence.drafts for sequence in self.sequences):
            if self._steady is None or self._device.type != "cpu":
                rows = len(self.sequences)
                self._steady = self._assemble(
                    self._ids[:rows],
                    self._slots[:rows],
                    self._ones[: rows + 1],
                    self._lengths[:rows],
                    self._ones[:rows],
                    self.sequences,
                )
            return self._steady
        return self._mixed(chunks)

    def _mixed(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        """Lay drafts behind the tokens of their rows, and chunks behind all rows."""
        rows = len(self.sequences)
        ids: list[int] = []
        for sequence, token_id in zip(self.sequences, self._ids[:rows].tolist(), strict=True):
            ids += [token_id, *sequence.drafts]
        counts = [1 + len(sequence.drafts) for sequence in self.sequences]
        firsts = self._positions[:rows].tolist()
        for place, chunk in enumerate(chunks):
            start = chunk.sequence.num_computed
            ids += chunk.sequence.tokens[start : start + chunk.num_tokens]
            counts.append(chunk.num_tokens)
            firsts.append(start)
            self._set_table(rows + place, chunk.sequence.blocks)
        counts_Z, firsts_Z = np.array(counts), np.array(firsts)
        bounds = np.concatenate([[0], np.cumsum(counts_Z)])
        at = np.arange(len(ids)) + np.repeat(firsts_Z - bounds[:-1], counts_Z)
        owners = np.repeat(np.arange(len(counts)), counts_Z)
        blocks = self._tables[owners, at // self._block_size]
        wanted = [np.arange(bounds[rows])]
        for chunk, start, end in zip(chunks, bounds[rows:-1], bounds[rows + 1 :], strict=True):
            wanted.append(np.arange(start if chunk.sequence.wants_scores else end - 1, end))
        return self._assemble(
            np.array(ids, np.int64),
            blocks * self._block_size + at % self._block_size,
            bounds,
            firsts_Z + counts_Z,
            np.concatenate(wanted),
            [*self.sequences, *(chunk.sequence for chunk in chunks)],
        )

    def _assemble(
        self,
        ids: Ints,
        slots: Ints,
        bounds: Ints,
        lengths: Ints,
        logits_rows: Ints,
        sequences: Sequence[SequenceState],
    ) -> ForwardBatch:
        adapters = tuple(sequence.adapter_id for sequence in sequences)
        paged = PagedTokens(
            self._cache,
            torch.from_numpy(bounds),
            torch.from_numpy(lengths),
            send(torch.from_numpy(slots), self._device),
            torch.from_numpy(self._tables[: len(lengths)]),
        )
        return ForwardBatch(
            send(torch.from_numpy(ids)[None], self._device),
            paged=paged,
            logits_rows_L=send(torch.from_numpy(logits_rows), self._device),
            adapters_Z=adapters if any(adapters) else None,
        )

    def _set_table(self, row: int, blocks: Sequence[int]) -> None:
        if len(blocks) > self._tables.shape[1]:
            self._widen(len(blocks))
        self._tables[row, : len(blocks)] = blocks

    def _widen(self, blocks: int) -> None:
        """Make room for a longer sequence; twice as much, so that it is rare."""
        wider = np.zeros((len(self._tables), 2 * blocks), np.int64)
        wider[:, : self._tables.shape[1]] = self._tables
        self._tables = wider
        self._steady = None
