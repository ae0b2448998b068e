"""How many drafts are worth their price: by measured times, and by what was accepted before.

A step with more rows takes longer, and so does drafting; each accepted draft is a token that needs
no step of its own. With acceptance p, the i-th draft of a sequence is one with probability p^i
(Leviathan et al., arXiv 2211.17192, section 3.3). Of all drafts of a batch, those with the highest
probability are made as long as tokens per second rise.

Shapes: Z sequences, K drafts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ziphius.engine.sequence import SequenceState

_FORGET = 0.98
"""Weight of a measurement that is one step older."""
_PRIOR, _PRIOR_WEIGHT = 0.7, 4.0
_GAIN = 1.02
"""What drafting must promise: less is within what times are off by."""
_PLAN_EVERY, _LOOK_EVERY = 8, 64
_FIRST_LOOKS = 8


class LineFit:
    """A line through the latest measurements, older ones counting less; never falling."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)

    def add(self, x: float, y: float) -> None:
        """Put one measurement down."""
        self._sums = self._sums * _FORGET + np.array([1, x, y, x * x, x * y])

    def line(self) -> tuple[float, float] | None:
        """Return value at 0 and slope; None until two different `x` were measured."""
        n, x, y, xx, xy = self._sums.tolist()
        spread = n * xx - x * x
        if n == 0 or spread <= 1e-9 * n * xx:
            return None
        slope = max(0.0, (n * xy - x * y) / spread)
        return max(0.0, (y - slope * x) / n), slope


class Costs(NamedTuple):
    """What steps take, in seconds."""

    step: float
    """One step without a row."""
    row: float
    """Each row of it."""
    drafting: float
    """To draft one token for all sequences."""


class Acceptance:
    """Decayed average of how often a draft is accepted, once those before it are."""

    def __init__(self, prior: float, forget: float) -> None:
        self._prior = prior
        self._forget = forget
        self._accepted = self._tried = 0.0

    def add(self, drafted: int, accepted: int) -> None:
        """Count the drafts of one step; those behind a rejected one tell nothing."""
        self._accepted = self._accepted * self._forget + accepted
        self._tried = self._tried * self._forget + min(drafted, accepted + 1)

    @property
    def rate(self) -> float:
        """Probability of the next one."""
        weight = self._tried + _PRIOR_WEIGHT
        return (self._accepted + _PRIOR_WEIGHT * self._prior) / weight


def best_lengths(rates: Sequence[float], room: Sequence[int], most: int, costs: Costs) -> list[int]:
    """Choose the number of drafts of each sequence, for the most tokens per second.

    Args:
        rates: acceptance of each sequence.
        room: drafts that each can use.
        most: drafts of any.
        costs: of steps and drafts.
    """
    count = len(rates)
    depth_K = np.arange(1, most + 1)
    expected_ZK = np.array(rates)[:, None] ** depth_K
    expected_ZK[depth_K > np.array(room)[:, None]] = 0.0
    best, lengths = _GAIN * count / (costs.step + costs.row * count), np.zeros(count, np.int64)
    for deepest in range(1, most + 1):
        sorted_X = np.sort(expected_ZK[:, :deepest], axis=None)[::-1]
        rows_X = count + np.arange(1, len(sorted_X) + 1)
        seconds_X = costs.step + costs.row * rows_X + costs.drafting * deepest
        per_second_X = (count + sorted_X.cumsum()) / seconds_X
        place = int(per_second_X.argmax())
        if sorted_X[place] > 0 and per_second_X[place] > best:
            best = per_second_X[place]
            lengths = (expected_ZK[:, :deepest] >= sorted_X[place]).sum(1)
    return [int(length) for length in lengths]


class DraftLengths:
    """Decides before each step how many drafts each sequence gets.

    Args:
        most: drafts of a sequence.
        adaptive: else always as many as are of use.
    """

    def __init__(self, most: int, *, adaptive: bool) -> None:
        self._most = most
        self._adaptive = adaptive
        self._overall = Acceptance(_PRIOR, 0.99)
        self._by_sequence: dict[SequenceState, Acceptance] = {}
        self._step_fit, self._draft_fit = LineFit(), LineFit()
        self._plan: dict[SequenceState, int] = {}
        self._num_plans = 0

    def choose(self, sequences: Sequence[SequenceState]) -> list[int]:
        """Return how many drafts to make for each sequence; at most what `max_tokens` leaves."""
        # The last token of a completion is drawn, never drafted: nothing could follow it.
        room = [min(self._most, s.max_tokens - len(s.tokens) - 1) for s in sequences]
        if not self._adaptive or not sequences:
            return room
        self._num_plans += 1
        looks = self._num_plans <= _FIRST_LOOKS or self._num_plans % _LOOK_EVERY < 2
        if looks:
            # Times of both kinds of step are needed to compare them, and acceptance may change.
            return room if self._num_plans % 2 else [0] * len(sequences)
        if self._num_plans % _PLAN_EVERY == 0 or not all(s in self._plan for s in sequences):
            rates = [self._by_sequence.get(s, self._overall).rate for s in sequences]
            chosen = best_lengths(rates, room, self._most, self._costs())
            self._plan = dict(zip(sequences, chosen, strict=True))
        return [min(self._plan[s], most) for s, most in zip(sequences, room, strict=True)]

    def _costs(self) -> Costs:
        step = self._step_fit.line() or (1.0, 0.0)
        drafting = self._draft_fit.line() or (0.0, 0.0)
        return Costs(step[0], step[1], drafting[1])

    def learn(self, sequence: SequenceState, drafted: int, accepted: int) -> None:
        """Hear how many of a sequence's drafts were right."""
        self._overall.add(drafted, accepted)
        own = self._by_sequence.get(sequence)
        if own is None:
            own = self._by_sequence[sequence] = Acceptance(self._overall.rate, 0.9)
        own.add(drafted, accepted)

    def time(self, num_rows: int, step: float, deepest: int, drafting: float) -> None:
        """Hear how long a step without prompts took, and the drafting before it, in seconds."""
        self._step_fit.add(num_rows, step)
        self._draft_fit.add(deepest, drafting)

    def forget(self, sequence: SequenceState) -> None:
        """Hear that a sequence has ended."""
        self._by_sequence.pop(sequence, None)
        self._plan.pop(sequence, None)
