"""Speculative decoding that changes no token: drafts are checked against the target's own draws.

A step feeds the last token of a sequence and k drafts. The target's logits at all k + 1 rows are
drawn from in order, each with the draw of its own position, and a draft is accepted while it equals
the token drawn before it. As a draw hangs on seed, sequence and position alone (`ops/sampling.py`),
each token is the very one that would have come without drafts, greedy or sampled: there is nothing
to correct, as there is in rejection sampling (Leviathan et al., arXiv 2211.17192). Drafts are drawn
with the draws of their positions too: common random numbers make draft and target agree often.

Shapes: L rows that are drawn from, W vocabulary, M tokens of a step, D hidden_size.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ziphius.engine.drafts.lengths import DraftLengths
from ziphius.engine.drafts.proposer import Computed, Proposer
from ziphius.engine.drawing import Run, told
from ziphius.engine.sampler import BatchSampler
from ziphius.engine.sequence import SequenceState, Status
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.engine.step import Chunk
from ziphius.models.forward_batch import ForwardBatch


class Speculation:
    """Drafts for an engine: how many, from whom, and what became of them.

    Order of use in a step: `plan`, then the scheduler gives blocks, then `propose`, the target's
    step, `begin`, `draw_runs` and `finish`; without drafts too, so that proposers keep up.

    Args:
        proposer: guesses.
        config: how many.
        sampler: of the engine.
        clock: seconds, rising.
    """

    def __init__(
        self,
        proposer: Proposer,
        config: SpeculationConfig,
        sampler: BatchSampler,
        clock: Callable[[], float],
    ) -> None:
        self.proposer = proposer
        self._lengths = DraftLengths(config.num_speculative_tokens, adaptive=config.adaptive)
        self._sampler = sampler
        self._clock = clock
        self._times = [0.0, 0.0]
        self._deepest = 0
        self._tentative: Counter[int] = Counter()
        self._spoiled: dict[int, int] = {}
        self._layout: list[Computed] = []
        self._hidden_MD: Tensor | None = None
        self._num_rows = 0
        self.error: str | None = None
        """Why the proposer was given up, if it was: it raised."""
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0
        self._accepted_per_pos = [0] * config.num_speculative_tokens

    def plan(self, sequences: Sequence[SequenceState]) -> None:
        """Say how many tokens each sequence wants blocks for, beside its next one."""
        lengths = self._lengths.choose(sequences) if self.error is None else [0] * len(sequences)
        for sequence, length in zip(sequences, lengths, strict=True):
            sequence.num_lookahead = max(0, length)

    def propose(self, sequences: Sequence[SequenceState]) -> None:
        """Draft at most `num_lookahead` tokens for each sequence."""
        started = self._clock()
        lengths = [sequence.num_lookahead for sequence in sequences]
        drafts: list[list[int]] = [[] for _ in sequences]
        if self.error is None:
            try:
                drafts = self.proposer.propose(sequences, lengths, self._draw)
            except Exception as error:
                # Drafts are never needed; that there are none any more is shown by the metrics.
                self.error = told(error)
        for seat, count in self._tentative.items():
            self._sampler.rollback(seat, count)
        self._tentative.clear()
        for sequence, drafted in zip(sequences, drafts, strict=True):
            sequence.drafts = drafted[: self._spoiled.get(sequence.seat)]
        self._spoiled.clear()
        self._deepest = max(map(len, drafts), default=0)
        self._times = [self._clock() - started, self._clock()]

    def _draw(self, logits_LW: Tensor, sequences: Sequence[SequenceState], ahead: int) -> list[int]:
        """Draw drafts as the target will draw at their positions."""
        seats = [sequence.seat for sequence in sequences]
        positions = [len(sequence.tokens) + ahead for sequence in sequences]
        try:
            sampled = self._sampler(logits_LW, seats, positions)
        except Exception:
            ids, failed = self._draw_apart(logits_LW, seats, positions)
        else:
            ids, failed = sampled.ids_L.tolist(), list(sampled.failures)
        for place in failed:
            self._spoiled.setdefault(seats[place], ahead)
        for seat, token_id in zip(seats, ids, strict=True):
            if seat not in self._spoiled:
                self._sampler.accept(seat, token_id)
                self._tentative[seat] += 1
        return ids

    def _draw_apart(
        self, logits_LW: Tensor, seats: list[int], positions: list[int]
    ) -> tuple[list[int], list[int]]:
        """Draw row by row; return places too that raise: the target's own draw will tell why."""
        ids, failed = [], []
        for place, (seat, position) in enumerate(zip(seats, positions, strict=True)):
            try:
                drawn = self._sampler(logits_LW[place : place + 1], [seat], [position])
                ids.append(int(drawn.ids_L[0]))
            except Exception:
                failed.append(place)
                ids.append(0)
        return ids, failed

    def begin(
        self,
        batch: ForwardBatch,
        sequences: Sequence[SequenceState],
        chunks: Sequence[Chunk],
        hidden_MD: Tensor | None,
    ) -> None:
        """Note what a step has just computed, before anything moves."""
        assert batch.paged is not None
        bounds, lengths = batch.paged.cu_seqlens_Z1.tolist(), batch.paged.seq_lens_Z.tolist()
        self._layout = []
        for place, sequence in enumerate([*sequences, *(chunk.sequence for chunk in chunks)]):
            new = bounds[place + 1] - bounds[place]
            start = lengths[place] - new
            self._layout.append(Computed(sequence, start, bounds[place], new))
        self._hidden_MD = hidden_MD
        self._num_rows = 0 if chunks else bounds[-1]
        self.proposer.overwrite(batch.paged.slot_mapping_M.cpu().numpy())

    def spoil(
        self, batch: ForwardBatch, sequences: Sequence[SequenceState], chunks: Sequence[Chunk]
    ) -> None:
        """Note that a step with these drafts failed, and is computed again without them."""
        self.begin(batch, sequences, chunks, None)
        self._num_rows = 0
        for sequence in sequences:
            sequence.drafts = []

    def finish(self, runs: Sequence[Run]) -> None:
        """Note how far the drafts went."""
        for run in runs:
            if run.drafts:
                self._count(run)
        kept = [one for one in map(_kept, self._layout) if one is not None]
        if self.error is None:
            self.proposer.observe(kept, self._hidden_MD)
        if self._num_rows:
            drafting, started = self._times
            self._lengths.time(self._num_rows, self._clock() - started, self._deepest, drafting)

    def _count(self, run: Run) -> None:
        self.num_drafts += 1
        self.num_draft_tokens += len(run.drafts)
        self.num_accepted_tokens += run.accepted
        for place in range(run.accepted):
            self._accepted_per_pos[place] += 1
        if run.sequence.status is Status.DECODING:
            self._lengths.learn(run.sequence, len(run.drafts), run.accepted)

    def forget(self, sequence: SequenceState) -> None:
        """Hear that a sequence gives its seat and its blocks up."""
        self.proposer.forget(sequence)
        self._lengths.forget(sequence)

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain data, under vLLM's names."""
        return {
            "spec_decode_num_drafts": self.num_drafts,
            "spec_decode_num_draft_tokens": self.num_draft_tokens,
            "spec_decode_num_accepted_tokens": self.num_accepted_tokens,
            "spec_decode_num_accepted_tokens_per_pos": list(self._accepted_per_pos),
            "spec_decode_error": self.error,
        }


def _kept(one: Computed) -> Computed | None:
    """Leave out what was rejected; None for a sequence that does not run any more."""
    sequence = one.sequence
    if sequence.status not in (Status.PREFILLING, Status.DECODING):
        return None
    # What was computed is all but the token just drawn.
    return one._replace(kept=min(one.kept, sequence.num_computed - one.start))
