"""Figures of a measurement, each with its interval, and of two measurements on the same problems.

Two models are compared on the problems that both were asked, one difference a problem: what makes
a problem hard for both falls out, so the interval is narrower than those of the two means suggest.

Figures of one run have intervals over its problems; those `over_seeds` take one measurement of
every run, and cover what another seed would have made (`evals/hierarchical.py`).

Shapes: N problems, S samples of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ziphius.evals.errors import EvalError
from ziphius.evals.hierarchical import SeedSample, seed_interval, seed_ratio
from ziphius.evals.intervals import Estimate, mean_interval, ratio_interval
from ziphius.evals.majority import majority
from ziphius.evals.measure import Answers, Measurement, solved
from ziphius.evals.pass_at_k import pass_at_k

Figure = Literal["pass@1", "pass@8", "greedy", "maj@8"]
"""Correct samples; problems that one of 8 solves; the one sample of a greedy measurement; problems
whose most frequent answer of 8 is correct."""


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


def figure_of(measurement: Measurement, figure: Figure, *, slices: Sequence[str] = ()) -> Estimate:
    """Return a figure of one run, over all slices by default."""
    correct_NS = _correct(measurement.only(tuple(slices) or measurement.slices), figure)
    values_N = pass_at_k(correct_NS.sum(axis=1), correct_NS.shape[1], _k(figure))
    return mean_interval(values_N, bounds=(0.0, 1.0))


def figure_over_seeds(
    measurements: Sequence[Measurement], figure: Figure, *, slices: Sequence[str] = ()
) -> Estimate:
    """Return a figure of one arm in one mode, which was measured once at every seed."""
    _check_seeds(measurements)
    chosen = [one.only(tuple(slices) or one.slices) for one in measurements]
    return seed_interval([SeedSample(_correct(one, figure)) for one in chosen], k=_k(figure))


def paired_difference(
    measurement: Measurement, reference: Measurement, *, k: int = 1, slices: Sequence[str] = ()
) -> Estimate:
    """Return pass@k of one model less that of another, over the problems that both were asked.

    Raises:
        EvalError: they were not asked the same problems, or are of one arm in one mode.
    """
    ours, theirs = _paired(measurement, reference, slices)
    return mean_interval(solved(ours, k) - solved(theirs, k), bounds=(-1.0, 1.0))


def paired_share(
    measurement: Measurement, reference: Measurement, *, k: int = 1, slices: Sequence[str] = ()
) -> Estimate | None:
    """Return pass@k of one model as a share of another's; None where the other's is about 0.

    Raises:
        EvalError: they were not asked the same problems, or are of one arm in one mode.
    """
    ours, theirs = _paired(measurement, reference, slices)
    return ratio_interval(solved(ours, k), solved(theirs, k))


def paired_difference_over_seeds(
    ours: Sequence[Measurement],
    theirs: Sequence[Measurement],
    figure: Figure,
    *,
    slices: Sequence[str] = (),
) -> Estimate:
    """Return a figure of one arm less that of another, over seeds and the problems of each.

    Args:
        ours: of one arm in one mode, one of every seed.
        theirs: of another arm or mode, at the same seeds in the same order.
        figure: which.
        slices: which, all by default.

    Raises:
        EvalError: they do not fit: other problems at a seed, several arms, or one against itself.
    """
    return seed_interval(_seed_samples(ours, theirs, figure, slices), k=_k(figure))


def share_over_seeds(
    ours: Sequence[Measurement],
    theirs: Sequence[Measurement],
    figure: Figure,
    *,
    slices: Sequence[str] = (),
) -> Estimate | None:
    """Return the ratio of the means over seeds of a figure; None where theirs may be 0.

    The arguments and errors are those of `paired_difference_over_seeds`.
    """
    return seed_ratio(_seed_samples(ours, theirs, figure, slices), k=_k(figure))


def _k(figure: Figure) -> int:
    return 8 if figure == "pass@8" else 1


def _correct(problems: Sequence[Answers], figure: Figure) -> NDArray[np.bool_]:
    """Return which samples of a figure are correct, [N, S]; a majority is one sample."""
    counts = {len(answers.correct) for answers in problems}
    wanted = {"greedy": {1}, "maj@8": {8}}.get(figure, counts)
    if len(counts) != 1 or counts != wanted:
        samples = ", ".join(map(str, sorted(counts))) or "none"
        number = "" if wanted == counts else f"{min(wanted)}, "
        raise EvalError(
            f"{figure} needs {number}the same number of samples of every problem; "
            f"there are: {samples}."
        )
    if figure == "maj@8":
        return np.array([[majority(answers)] for answers in problems])
    return np.array([answers.correct for answers in problems])


def _seed_samples(
    ours: Sequence[Measurement],
    theirs: Sequence[Measurement],
    figure: Figure,
    slices: Sequence[str],
) -> list[SeedSample]:
    _check_seeds(ours)
    _check_seeds(theirs)
    if len(ours) != len(theirs):
        raise EvalError(
            f"{len(ours)} seeds cannot be compared with {len(theirs)}: measure both at each."
        )
    pairs = [_paired(one, other, slices) for one, other in zip(ours, theirs, strict=True)]
    return [SeedSample(_correct(one, figure), _correct(other, figure)) for one, other in pairs]


def _check_seeds(measurements: Sequence[Measurement]) -> None:
    """Refuse measurements of several arms or modes, and one that is given for two seeds."""
    names = sorted({f"{one.arm} ({one.mode})" for one in measurements})
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise EvalError(f"Over seeds goes one arm in one mode, measured at each; given: {found}.")
    if len(set(measurements)) != len(measurements):
        raise EvalError(f"One measurement of {names[0]} is given for two seeds.")


def _paired(
    measurement: Measurement, reference: Measurement, slices: Sequence[str]
) -> tuple[tuple[Answers, ...], tuple[Answers, ...]]:
    """Return the problems of both in one order."""
    if (measurement.arm, measurement.mode) == (reference.arm, reference.mode):
        raise EvalError(
            f"Both measurements are of {reference.arm} ({reference.mode}): compare two arms, or "
            "two modes of one."
        )
    ours = measurement.only(tuple(slices) or measurement.slices)
    theirs = {answers.key: answers for answers in reference.only(tuple(slices) or reference.slices)}
    missing = len({answers.key for answers in ours} ^ set(theirs))
    if missing:
        raise EvalError(
            f"The two measurements differ in {missing} problems: ask both the same ones, or name "
            "the slices that they share."
        )
    return ours, tuple(theirs[answers.key] for answers in ours)
