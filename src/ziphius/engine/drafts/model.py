"""Drafts of a smaller model with the same vocabulary (Leviathan et al., arXiv 2211.17192).

Its cache has as many blocks as the target's, and a token lies in the same slot of both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.drafts.proposer import Computed, Draw
from ziphius.engine.drafts.slots import SlotMarks, slot_batch
from ziphius.engine.runner import Runner
from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Ints
from ziphius.models.cache import PagedCache


@dataclass(slots=True)
class _Lag:
    """How far the draft model has come with a sequence."""

    slots: Ints
    """Of its tokens, as far as they were needed."""
    num_computed: int
    """Tokens whose rows are right, from the first on."""


class ModelProposer:
    """Lets a draft model read what the target has read, and go on.

    Args:
        build_runner: makes the runner of the draft model, over a view of its cache.
        cache: of the draft model, with the blocks of the target's.
        context_length: tokens the draft model can read; longer sequences get no drafts.
        max_num_batched_tokens: most tokens it reads in one step before it drafts: sequences whose
            prompts are longer than what is left of it get their drafts in later steps.
        device: of the draft model.
    """

    needs_hidden = False

    def __init__(
        self,
        build_runner: Callable[[PagedCache], Runner],
        cache: PagedCache,
        *,
        context_length: int,
        max_num_batched_tokens: int,
        device: torch.device | None = None,
    ) -> None:
        self._cache = cache
        self._by_slot = cache.by_slot()
        self._runner = build_runner(self._by_slot)
        self._marks = SlotMarks(cache.num_blocks, cache.block_size)
        self._context_length = context_length
        self._budget = max_num_batched_tokens
        self._device = device or torch.device("cpu")
        self._lags: dict[SequenceState, _Lag] = {}

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        """Read the new tokens of the sequences, and return as many drafts as asked for."""
        wanted = {
            sequence: length
            for sequence, length in zip(sequences, lengths, strict=True)
            if length and len(sequence.tokens) + length <= self._context_length
        }
        for sequence, length in wanted.items():
            self._look_at(sequence, length)
        drafts: dict[SequenceState, list[int]] = {s: [] for s in self._catch_up(wanted)}
        if drafts:
            self._go_on(drafts, wanted, draw)
        return [drafts.get(sequence, []) for sequence in sequences]

    def _look_at(self, sequence: SequenceState, length: int) -> None:
        """Find the slots of a sequence and of its drafts, and what of it is read already."""
        tokens = len(sequence.tokens)
        lag = self._lags.setdefault(sequence, _Lag(np.empty(0, np.int64), 0))
        # Blocks behind the last token may have been given back and others taken.
        known = lag.num_computed
        ahead = self._marks.slots(sequence, known, tokens + length - 1)
        lag.slots = np.concatenate([lag.slots[:known], ahead])
        # Others that share its blocks may have read for it meanwhile.
        missing = np.flatnonzero(~self._marks.are_held(ahead[: tokens - 1 - known]))
        lag.num_computed = known + int(missing[0]) if len(missing) else tokens - 1

    def _catch_up(self, wanted: dict[SequenceState, int]) -> list[SequenceState]:
        """Choose whom to read in this step, the shortest first; return who can be drafted for.

        Of sequences that share blocks which are not read yet, one reads for all.
        """
        left, ready = self._budget, []
        taken: set[int] = set()
        missing = {s: len(s.tokens) - self._lags[s].num_computed for s in wanted}
        for sequence in sorted(wanted, key=lambda s: missing[s]):
            lag = self._lags[sequence]
            first = int(lag.slots[lag.num_computed])
            if first in taken:
                continue
            taken.add(first)
            if missing[sequence] <= left:
                left -= missing[sequence]
                ready.append(sequence)
            elif left > 0:
                self._read(sequence, left)
                left = 0
        return ready

    def _read(self, sequence: SequenceState, count: int) -> None:
        """Read a part of a long text, without drafts."""
        lag = self._lags[sequence]
        start, end = lag.num_computed, lag.num_computed + count
        self._run([sequence.tokens[start:end]], [lag.slots[:end]])
        self._marks.set(lag.slots[start:end], held=True)
        lag.num_computed = end

    def _go_on(
        self, drafts: dict[SequenceState, list[int]], wanted: dict[SequenceState, int], draw: Draw
    ) -> None:
        """Read all that is left of these texts, then each draft after the one before it."""
        new = {
            sequence: sequence.tokens[self._lags[sequence].num_computed :] for sequence in drafts
        }
        for place in range(max(wanted[sequence] for sequence in drafts)):
            ends = {s: len(s.tokens) + place for s in new}
            tables = [self._lags[sequence].slots[:end] for sequence, end in ends.items()]
            logits_LW = self._run(list(new.values()), tables)
            drawn = draw(logits_LW, list(new), place)
            for sequence, token_id in zip(new, drawn, strict=True):
                drafts[sequence].append(token_id)
            new = {s: [drafts[s][-1]] for s in new if wanted[s] > place + 1}
        for sequence, drafted in drafts.items():
            lag = self._lags[sequence]
            before, lag.num_computed = lag.num_computed, len(sequence.tokens) + len(drafted) - 1
            self._marks.set(lag.slots[before : lag.num_computed], held=True)

    def _run(self, ids: Sequence[Sequence[int]], tables: Sequence[Ints]) -> Tensor:
        flat = [token_id for one in ids for token_id in one]
        batch = slot_batch(self._by_slot, flat, tables, [len(one) for one in ids], self._device)
        return self._runner(batch).logits_LW

    def overwrite(self, slots_M: Ints) -> None:
        """Forget the rows of the texts that were in these slots."""
        self._marks.set(slots_M, held=False)

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        """Forget the rows of rejected drafts."""
        for one in computed:
            lag = self._lags.get(one.sequence)
            if lag is not None:
                lag.num_computed = min(lag.num_computed, one.start + one.kept)
                self._marks.set(lag.slots[one.start : lag.num_computed], held=True)

    def forget(self, sequence: SequenceState) -> None:
        """Drop what is known of a sequence; the rows stay, for others with the same text."""
        self._lags.pop(sequence, None)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the draft model's rows too."""
        self._marks.copy_blocks(sources, targets)
        self._cache.copy_blocks(sources, targets)
