"""Figures of a measurement, each with its interval, and of two measurements on the same problems.

Two models are compared on the problems that both were asked, one difference a problem: what makes
a problem hard for both falls out, so the interval is narrower than those of the two means suggest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ziphius.evals.errors import EvalError
from ziphius.evals.intervals import Estimate, mean_interval, ratio_interval
from ziphius.evals.measure import Answers, Measurement, solved


@dataclass(frozen=True)
class Summary:
    """What a model does on one slice, or on several together."""

    name: str
    problems: int
    samples: int
    """Of each problem; the fewest, if they differ."""
    k: int
    pass_at_1: Estimate
    pass_at_k: Estimate
    tokens: Estimate
    """Length of a completion."""
    corrections: Estimate
    """Words of self-correction in an answer."""
    truncated: float
    """Share of completions that were cut off."""


def summarize(
    measurement: Measurement, *, k: int, name: str | None = None, slices: Sequence[str] = ()
) -> Summary:
    """Sum some slices up, all by default.

    Args:
        measurement: of one model.
        k: for pass@k.
        name: of the slices together; by default theirs.
        slices: which.
    """
    slices = tuple(slices) or measurement.slices
    chosen = measurement.only(slices)
    if not chosen:
        raise EvalError("Nothing was measured: there are no problems.")
    return Summary(
        name or " + ".join(slices),
        problems=len(chosen),
        samples=min(len(answers.correct) for answers in chosen),
        k=k,
        pass_at_1=mean_interval(solved(chosen, 1), bounds=(0.0, 1.0)),
        pass_at_k=mean_interval(solved(chosen, k), bounds=(0.0, 1.0)),
        tokens=mean_interval([np.mean(answers.tokens) for answers in chosen]),
        corrections=mean_interval([np.mean(answers.corrections) for answers in chosen]),
        truncated=float(np.mean([np.mean(answers.truncated) for answers in chosen])),
    )


def summarize_slices(measurement: Measurement, *, k: int) -> tuple[Summary, ...]:
    """Sum every slice up by itself, in their order."""
    return tuple(summarize(measurement, k=k, slices=[name]) for name in measurement.slices)


def paired_difference(
    measurement: Measurement, reference: Measurement, *, k: int = 1, slices: Sequence[str] = ()
) -> Estimate:
    """Return pass@k of one model less that of another, over the problems that both were asked.

    Raises:
        EvalError: they were not asked the same problems.
    """
    ours, theirs = _paired(measurement, reference, slices)
    return mean_interval(solved(ours, k) - solved(theirs, k), bounds=(-1.0, 1.0))


def paired_share(
    measurement: Measurement, reference: Measurement, *, k: int = 1, slices: Sequence[str] = ()
) -> Estimate | None:
    """Return pass@k of one model as a share of another's; None where the other's is about 0.

    Raises:
        EvalError: they were not asked the same problems.
    """
    ours, theirs = _paired(measurement, reference, slices)
    return ratio_interval(solved(ours, k), solved(theirs, k))


def _paired(
    measurement: Measurement, reference: Measurement, slices: Sequence[str]
) -> tuple[tuple[Answers, ...], tuple[Answers, ...]]:
    """Return the problems of both in one order."""
    ours = measurement.only(tuple(slices) or measurement.slices)
    theirs = {answers.key: answers for answers in reference.only(tuple(slices) or reference.slices)}
    missing = len({answers.key for answers in ours} ^ set(theirs))
    if missing:
        raise EvalError(
            f"The two measurements differ in {missing} problems: ask both the same ones, or name "
            "the slices that they share."
        )
    return ours, tuple(theirs[answers.key] for answers in ours)
