"""Schedules as pure functions: learning rate and MTP weight by progress, rows of a batch by step.

Sources: DeepSeek-V2 report (arXiv 2405.04434), section 3.1.2; DeepSeek-V3 report (arXiv
2412.19437), section 4.2. Progress is the share of the run's rows that came before a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from ziphius.core.config import Config

# V3's borders in trillions of tokens, and its last rate, 7.3e-6 of 2.2e-4.
_V3_CONSTANT, _V3_COSINE, _V3_LOW, _V3_ALL = 10.0, 14.3, 14.633, 14.8
_V3_FLOOR, _V3_LAST = 0.1, 7.3 / 220.0
_COSINE_FLOOR = 0.1
WARMUP_SHARE = 0.1


def constant(progress: float) -> float:
    """Stay at the full rate."""
    del progress
    return 1.0


def cosine(progress: float) -> float:
    """Fall along half a cosine to a tenth."""
    return _half_cosine(progress, _COSINE_FLOOR)


def three_parts(progress: float) -> float:
    """Follow V3: two thirds at the full rate, a cosine to a tenth, then two constant steps."""
    trillions = progress * _V3_ALL
    if trillions < _V3_CONSTANT:
        return 1.0
    if trillions < _V3_COSINE:
        return _half_cosine((trillions - _V3_CONSTANT) / (_V3_COSINE - _V3_CONSTANT), _V3_FLOOR)
    return _V3_FLOOR if trillions < _V3_LOW else _V3_LAST


def two_steps(progress: float) -> float:
    """Follow V2: times 0.316 at 60 % and again at 90 % of the run."""
    return float(0.316 ** ((progress >= 0.6) + (progress >= 0.9)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "v3": three_parts,
    "v2": two_steps,
}
"""Factor on the learning rate by progress."""


def learning_rate_factor(
    schedule: str, *, step: int, progress: float, warmup_steps: int, total_steps: int | None
) -> float:
    """Return the factor on the learning rate: the schedule's, after a linear rise.

    Args:
        schedule: a name of `SCHEDULES`.
        step: counted from 0.
        progress: share of the run done before this step.
        warmup_steps: steps of the rise; at most a tenth of the run's.
        total_steps: of the run; None while it is not known.
    """
    if total_steps is not None:
        warmup_steps = min(warmup_steps, max(1, int(WARMUP_SHARE * total_steps)))
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return rise * SCHEDULES[schedule](progress)


class LambdaSchedule(Config):
    """Weight of the MTP loss over a run; V3: 0.3 for the first 10T of 14.8T tokens, then 0.1."""

    early: Annotated[float, Field(ge=0)] = 0.3
    """Weight up to the switch."""
    late: Annotated[float, Field(ge=0)] = 0.1
    """Weight after the switch."""
    switch: Annotated[float, Field(ge=0, le=1)] = 10.0 / 14.8
    """Share of the run at which the weight changes."""

    def weight(self, progress: float) -> float:
        """Return the weight at `progress`, the share of the run done (0 to 1)."""
        return self.early if progress < self.switch else self.late


@dataclass(frozen=True)
class BatchSizeSchedule:
    """The rows of each step: constant, or growing in equal strides from a smaller batch.

    V3 goes from 3,072 to 15,360 sequences over the first 3 % of its tokens. Strides are the first
    size, so every size can be shared out like the first.
    """

    full: int
    first: int
    rampup_steps: int
    """Steps over which the batch grows; 0 for equal steps."""

    def count(self, step: int) -> int:
        """Return the rows of a step."""
        if step >= self.rampup_steps:
            return self.full
        strides = self.full // self.first - 1
        return self.first * (1 + strides * step // self.rampup_steps)

    def first_row(self, step: int) -> int:
        """Count the rows of all steps before this one."""
        after = max(0, step - self.rampup_steps)
        return self._starts[min(step, self.rampup_steps)] + self.full * after

    def steps_for(self, rows: float) -> int:
        """Return the fewest steps that see this many rows; at least 1."""
        step = 1
        while step < self.rampup_steps and self.first_row(step) < rows:
            step += 1
        missing = rows - self.first_row(step)
        return step + max(0, math.ceil(missing / self.full))

    def __call__(self, step: int) -> range:
        """Return the numbers of the rows of a step."""
        first = self.first_row(step)
        return range(first, first + self.count(step))

    @cached_property
    def _starts(self) -> list[int]:
        """List the first rows of the steps of the ramp, and of the one after it."""
        return list(accumulate(map(self.count, range(self.rampup_steps)), initial=0))


def _half_cosine(share: float, floor: float) -> float:
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
