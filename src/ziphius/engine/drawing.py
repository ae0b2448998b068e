"""Drawing behind drafts: each token as if the drafts before it had been taken.

Shapes: L rows that are drawn from, W vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ziphius.engine.sampler import BatchSampler, Sampled, TopLogprobs
from ziphius.engine.sequence import SequenceState


@dataclass(slots=True)
class Run:
    """The rows of one sequence that a step draws from: its last token's, and its drafts'."""

    sequence: SequenceState
    drafts: list[int]
    row: int
    """Place of the first one among the logits."""
    accepted: int = 0
    """Drafts that were drawn."""

    def matches(self, token_id: int) -> bool:
        """Tell whether the next draft is what was drawn, and count it."""
        is_right = self.drafts[self.accepted : self.accepted + 1] == [token_id]
        self.accepted += is_right
        return is_right


def draw_runs(sampler: BatchSampler, logits_LW: Tensor, runs: Sequence[Run]) -> Sampled:
    """Draw at every row of some sequences, in one call.

    Args:
        sampler: knows the seats of the sequences.
        logits_LW: of the rows.
        runs: in the order of the rows. A sequence loses its drafts where they cannot be checked.

    Returns:
        What was drawn at each row; behind a draft that was not drawn it means nothing.
    """
    seats: list[int] = []
    positions: list[int] = []
    for run in runs:
        length, count = len(run.sequence.tokens), 1 + len(run.drafts)
        seats += [run.sequence.seat] * count
        positions += range(length, length + count)
    drafts = {run.sequence.seat: run.drafts for run in runs if run.drafts}
    try:
        return sampler(logits_LW, seats, positions, drafts)
    except Exception:
        return _draw_apart(sampler, logits_LW, runs)


def _draw_apart(sampler: BatchSampler, logits_LW: Tensor, runs: Sequence[Run]) -> Sampled:
    """Draw for each sequence alone, and note on which that raises."""
    ids_L = torch.zeros(len(logits_LW), dtype=torch.int64)
    logprobs_L = torch.full((len(logits_LW),), math.nan)
    top: dict[int, TopLogprobs] = {}
    failures: dict[int, str] = {}
    for run in runs:
        try:
            alone = _draw_run(sampler, logits_LW, run)
        except Exception as error:
            failures[run.row] = told(error)
            continue
        end = run.row + len(alone.ids_L)
        ids_L[run.row : end], logprobs_L[run.row : end] = alone.ids_L, alone.logprobs_L
        top |= {run.row + place: found for place, found in alone.top.items()}
        failures |= {run.row + place: why for place, why in alone.failures.items()}
    return Sampled(ids_L, logprobs_L, top, failures)


def _draw_run(sampler: BatchSampler, logits_LW: Tensor, run: Run) -> Sampled:
    seat, length = run.sequence.seat, len(run.sequence.tokens)
    if run.drafts:
        count = 1 + len(run.drafts)
        rows = logits_LW[run.row : run.row + count]
        try:
            places = range(length, length + count)
            return sampler(rows, [seat] * count, places, {seat: run.drafts})
        except Exception:
            # It may be the drafts: without them it is as if there had never been any.
            run.drafts = []
    return sampler(logits_LW[run.row : run.row + 1], [seat], [length])


def told(error: Exception) -> str:
    """Say in one line what was raised."""
    return f"{type(error).__name__}: {error}"
