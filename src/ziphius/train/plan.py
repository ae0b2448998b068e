"""How many steps a run has: at once from its budget, or from the time its first steps take.

A budget of time becomes a number of steps, which is kept with the checkpoints. It is found out anew
after every tenth of the time, as machines that are shared do not keep their pace: planned once,
of two runs of 90 s one took 144 s and the other 73.
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ziphius.train.budget import Budget, parse_budget
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.schedules import BatchSizeSchedule

MEASURED_STEPS = 20
SLOW_SHARE = 0.1
"""Slow steps are measured for no more than this share of the budget, but for two steps at least."""
AGAIN_SHARE = 0.1
"""Of the budget, after which the number of steps is found out again."""
SKIPPED_STEPS = 2
"""The first steps compile kernels and fill caches; they are not measured where there are more."""


def planned_steps(budget: Budget, batch_sizes: BatchSizeSchedule, seq_len: int) -> int | None:
    """Return the steps of a run, None if only measuring can tell."""
    if budget.unit == "steps":
        return int(budget.amount)
    if budget.unit == "tokens":
        return batch_sizes.steps_for(budget.amount / seq_len)
    return None


def refuse_spent(
    folder: Path, config: TrainConfig, *, step: int, seconds: float, total_steps: int | None
) -> None:
    """Refuse to go on with a run that has done more than its budget is now.

    Args:
        folder: of the run.
        config: how it is to go on.
        step: steps that it has done.
        seconds: that they took.
        total_steps: that it would have; None where its budget is another time than it was.

    Raises:
        TrainingError: it has.
    """
    budget = parse_budget(config.budget)
    is_spent = seconds >= budget.amount if total_steps is None else step > total_steps
    if is_spent:
        raise TrainingError(
            f"The run in {folder} has done {step:,} steps in {seconds:,.0f} s, which is more than "
            f"--budget {config.budget}. Nothing was changed. Give a larger budget to go on, or "
            "another --out for a shorter run."
        )


def progress(batch_sizes: BatchSizeSchedule, step: int, total_steps: int | None) -> float:
    """Return the share of the run's rows before a step; 0 while the length is not known."""
    return batch_sizes.first_row(step) / batch_sizes.first_row(total_steps) if total_steps else 0.0


@dataclass
class Pace:
    """The time that steps and measurements take on this machine."""

    config: TrainConfig
    budget_s: float
    seconds_per_row: list[float] = field(default_factory=list)
    validation_s: float = 0.0
    """Of one measurement on held-out text."""
    planned_s: float | None = None
    """Of the budget, used when the number of steps was found out the last time; kept with the
    checkpoints."""
    planned_count: int = 0
    """Steps that this start of the run had observed until then."""

    def observe(self, step: int, seconds: float) -> None:
        """Take in the time of a step."""
        self.seconds_per_row.append(seconds / self.config.batch_sizes.count(step))

    def is_due(self, seconds_used: float) -> bool:
        """Tell whether enough steps were measured to find out how many there will be."""
        if self.planned_s is not None:
            is_later = seconds_used - self.planned_s >= AGAIN_SHARE * self.budget_s
            return is_later and len(self._fresh()) >= 2
        count = len(self.seconds_per_row)
        is_slow = count >= 2 and seconds_used >= SLOW_SHARE * self.budget_s
        return count >= MEASURED_STEPS or is_slow

    def plan(self, step: int, seconds_used: float) -> int:
        """Return the steps that fit into the budget, `step` of which are done.

        The last measurement on held-out text fits in too, and those in between.
        """
        sizes = self.config.batch_sizes
        if self.planned_s is None:
            row_s = statistics.median(self._fresh() or self.seconds_per_row)
        else:
            row_s = statistics.fmean(self._fresh())
        self.planned_s, self.planned_count = seconds_used, len(self.seconds_per_row)
        if self.config.validate_every:
            row_s += self.validation_s / (self.config.validate_every * sizes.full)
        left_s = max(0.0, self.budget_s - seconds_used - self.validation_s)
        return max(
            step, sizes.steps_for(sizes.first_row(step) + int(left_s / row_s) - sizes.full + 1)
        )

    def guess(self, step: int, seconds_used: float) -> int:
        """Return about how many steps fit into the budget, at the pace of earlier starts."""
        sizes = self.config.batch_sizes
        return max(step + 1, sizes.steps_for(sizes.first_row(step) * self.budget_s / seconds_used))

    def _fresh(self) -> list[float]:
        """Return the pace of the steps since the last plan, without the first ones of a start."""
        return self.seconds_per_row[max(self.planned_count, SKIPPED_STEPS) :]

    def eta_s(self, step: int, total_steps: int | None, seconds_used: float) -> float:
        """Return the time that is left after `step` steps."""
        if total_steps is None or not self.seconds_per_row:
            return max(0.0, self.budget_s - seconds_used)
        row_s = statistics.median(self.seconds_per_row[-MEASURED_STEPS:])
        sizes = self.config.batch_sizes
        return row_s * (sizes.first_row(total_steps) - sizes.first_row(step))
