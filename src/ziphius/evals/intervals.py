"""95 % intervals by bootstrap over problems (Efron 1979; the percentile interval).

A problem is drawn with all its samples, so an interval covers both that other problems would have
been asked and that other samples would have been drawn. It does not cover what another seed of
the training would have made of the model: for that, train again, and see `evals/hierarchical.py`.

Where all problems have one and the same value a bootstrap is blind: 64 of 64 correct would read
"1.00, from 1.00 to 1.00". For values with known bounds the interval then reaches as far as such
luck remains likely: if more than a share q of all problems had another value, N problems would all
miss it with a chance below (1 - q)^N, so q = 1 - 0.025^(1/N) (for 0 and 1 the bound of Clopper and
Pearson 1934).

Shapes: N problems, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ziphius.evals.errors import EvalError

CONFIDENCE = 0.95
RESAMPLES = 10_000
PAIRS_AT_ONCE = 1_000_000
"""Drawn problems held at once: a limit of memory, which no figure hangs on."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int = 1
    """Runs it was taken from; with one, the interval leaves out what another seed would make."""

    def covers(self, value: float) -> bool:
        """Tell whether the interval includes a value, its ends too."""
        return self.low <= value <= self.high


def mean_interval(
    values_N: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return the mean over problems with its interval.

    Args:
        values_N: one value of each problem.
        bounds: the smallest and the largest value that a problem can have, if there are any.
        seed: of the draws; the same problems are drawn for the same seed and number of problems.
        resamples: how often N problems are drawn anew.
    """
    values = _values(values_N)
    value = float(values.mean())
    if values.min() == values.max():
        return Estimate(value, *luck(value, bounds or (value, value), len(values)))
    means_R = _resampled_means(values[None], seed, resamples)[0]
    low, high = np.quantile(means_R, _tails())
    return Estimate(value, float(low), float(high))


def ratio_interval(
    values_N: ArrayLike, reference_N: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate | None:
    """Return the ratio of two means over the same problems, which are drawn together.

    Returns:
        None where the reference's mean is 0, or so near that draws of the problems reach 0: there
        is no ratio to speak of then. All values must be 0 or more.
    """
    both = np.stack([_values(values_N), _values(reference_N)])
    means_2R = _resampled_means(both, seed, resamples)
    if means_2R[1].min() <= 0.0:
        return None
    low, high = np.quantile(means_2R[0] / means_2R[1], _tails())
    return Estimate(float(both[0].mean() / both[1].mean()), float(low), float(high))


def luck(value: float, bounds: tuple[float, float], problems: int) -> tuple[float, float]:
    """Return how far the mean may be off if all problems have one value, within its bounds."""
    share = 1.0 - _tails()[0] ** (1.0 / problems)
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)


def _values(values_N: ArrayLike) -> Floats:
    values = np.asarray(values_N, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise EvalError("An interval needs the values of at least one problem; there is none.")
    return values


def _tails() -> tuple[float, float]:
    return (1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0


def _resampled_means(values_MN: Floats, seed: int, resamples: int) -> Floats:
    """Return the means of resampled problems, [M, R]; the M rows share their draws."""
    parts = [
        values_MN[:, chosen_RN].mean(axis=-1)
        for chosen_RN in _draws(values_MN.shape[1], seed, resamples)
    ]
    return np.concatenate(parts, axis=1)


def _draws(problems: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    at_once = max(1, PAIRS_AT_ONCE // problems)
    for first in range(0, resamples, at_once):
        count = min(at_once, resamples - first)
        yield generator.integers(problems, size=(count, problems))
