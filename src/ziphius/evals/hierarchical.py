"""95 % intervals over seeds, problems and samples, for what another run would have shown.

A seed stands for a whole run: its weights and its problems are its own. The hierarchical bootstrap
(Davison and Hinkley 1997, section 3.8) draws seeds, then problems of each drawn seed, then samples
of each drawn problem, all with replacement. As it stands it covers too little, since five seeds
show less of their own spread than there is, and in part too much, since the means of problems
already vary with the luck of their samples. So every level is set to the spread that its values
show:

1. Deviations of the drawn seeds are scaled to Student's interval of the seeds' means: 95 % of them
   lie within t s / sqrt(n), with n - 1 degrees of freedom.
2. Deviations of the drawn problems and samples together are scaled to the variance of the problems'
   values, and centred: pass@k of samples drawn anew is lower in the mean than that of the samples.
3. The interval reaches to both sides as far as 95 % of the summed deviations. Few seeds cannot say
   how skewed they are, so the shape comes from the statistic: Wilson's score interval (1927) with
   the variance found for a share, the logarithm for a ratio, neither for a difference.
4. Where all problems have one value there is nothing to draw, and the interval reaches as far as
   that can be luck (`intervals.luck`); that of a share always reaches so far at least.

In simulation (tests/unit/evals/test_hierarchical.py) five seeds cover at 93 % or more. Where seeds
differ little the interval is up to twice as wide as with the true variance known: that they differ
little is among what five seeds cannot tell for sure. What one seed in ten does and the others do
not, five seeds may not show at all, and no interval over them covers it.

Drawing N problems with their samples is one multinomial draw over the values that a problem can
take, so nothing of size N is ever drawn.

Shapes: N problems of a seed, S samples of each, n seeds, R resamples, C values of a problem.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziphius.evals.errors import EvalError
from ziphius.evals.intervals import CONFIDENCE, RESAMPLES, Estimate, luck
from ziphius.evals.pass_at_k import pass_at_k
from ziphius.evals.student import student_975

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeedSample:
    """Which samples are correct, of the problems of one seed; a row is the same problem in both."""

    ours_NS: NDArray[np.bool_]
    theirs_NS: NDArray[np.bool_] | None = None
    """Of another model; its number of samples may differ."""

    def __post_init__(self) -> None:
        """Refuse what is not one row a problem."""
        if self.ours_NS.ndim != 2 or self.ours_NS.size == 0:
            raise EvalError("A seed needs at least one problem with at least one sample.")
        theirs = self.theirs_NS
        if theirs is not None and (theirs.ndim != 2 or len(theirs) != len(self.ours_NS)):
            raise EvalError("Two models are compared on the same problems: one row each in both.")


@dataclass(frozen=True)
class _Seed:
    """What one seed can show: its problems, and those with their samples drawn anew."""

    values_N: Floats
    drawn_C: Floats
    """Values that a drawn problem can take."""
    chances_C: Floats

    @property
    def mean(self) -> float:
        return float(self.values_N.mean())

    def deviations(self, count: int, generator: np.random.Generator) -> Floats:
        """Draw all problems and their samples `count` times, and say how far off the means are."""
        problems = len(self.values_N)
        centre = float(self.chances_C @ self.drawn_C)
        drawn_variance = float(self.chances_C @ np.square(self.drawn_C - centre))
        if problems == 1 or drawn_variance == 0.0:
            return np.zeros(count)
        scale = math.sqrt(float(self.values_N.var(ddof=1)) / drawn_variance)
        counts_XC = generator.multinomial(problems, self.chances_C, size=count)
        means: Floats = counts_XC @ self.drawn_C / problems
        return scale * (means - centre)


def seed_interval(
    samples: Sequence[SeedSample], *, k: int = 1, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return the mean over seeds of pass@k, or of the paired difference where there are `theirs`.

    Every seed has the same weight. With one seed the interval is over its problems and samples.

    Args:
        samples: of each seed.
        k: of the unbiased pass@k of every problem.
        seed: of the draws. Swapping ours and theirs flips the sign and changes nothing else.
        resamples: how often everything is drawn anew.
    """
    if not _is_paired(samples):
        seeds = _seeds(samples, k, 1.0, 0.0)
        value = float(np.mean([one.mean for one in seeds]))
        interval = _score_interval(value, _half(seeds, seed, resamples))
        return _estimate(value, interval, (0.0, 1.0), seeds)
    # Drawn in one and the same order of the two models, whichever is asked for.
    sign, in_order = _in_order(samples)
    seeds = _seeds(in_order, k, 1.0, 1.0)
    value = sign * float(np.mean([one.mean for one in seeds]))
    half = _half(seeds, seed, resamples)
    return _estimate(value, (value - half, value + half), (-1.0, 1.0), seeds)


def seed_ratio(
    samples: Sequence[SeedSample], *, k: int = 1, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate | None:
    """Return the ratio of the means over seeds, ours to theirs, of pass@k.

    Returns:
        None where theirs may be 0, which leaves the ratio without bounds (Fieller 1954).
    """
    if not _is_paired(samples):
        raise EvalError("A ratio needs the samples of two models.")
    ours, theirs = (
        [one.mean for one in _seeds(samples, k, *weights)] for weights in ((1.0, 0.0), (0.0, -1.0))
    )
    reference = float(np.mean(theirs))
    if reference <= _half(_seeds(samples, k, 0.0, -1.0), seed, resamples):
        return None
    ratio = float(np.mean(ours)) / reference
    # The ratio's deviations to first order: those of a difference with these weights.
    seeds = _seeds(samples, k, 1.0 / reference, ratio / reference)
    reach = math.exp(_half(seeds, seed, resamples) / ratio) if ratio else 1.0
    low, high = ratio / reach, ratio * reach
    if _is_constant(seeds):
        furthest = (ratio - ratio / reference, ratio + 1.0 / reference)
        low, high = luck(ratio, furthest, _count(seeds))
    return Estimate(ratio, max(low, 0.0), high, len(seeds))


def _is_paired(samples: Sequence[SeedSample]) -> bool:
    if not samples:
        raise EvalError("An interval needs at least one seed.")
    paired = {sample.theirs_NS is not None for sample in samples}
    if len(paired) != 1:
        raise EvalError("Either all seeds have two models, or none has.")
    return paired.pop()


def _in_order(samples: Sequence[SeedSample]) -> tuple[float, Sequence[SeedSample]]:
    """Put the two models in an order that is the same if they are swapped; -1 where it swaps."""
    swapped = [
        SeedSample(one.theirs_NS, one.ours_NS) for one in samples if one.theirs_NS is not None
    ]
    ours, theirs = ([one.ours_NS.tobytes() for one in given] for given in (samples, swapped))
    return (1.0, samples) if ours <= theirs else (-1.0, swapped)


def _seeds(
    samples: Sequence[SeedSample], k: int, ours_weight: float, theirs_weight: float
) -> list[_Seed]:
    """Give every problem the value of ours times a weight, less that of theirs times one."""
    found = []
    for sample in samples:
        ours_N = sample.ours_NS.sum(axis=1)
        theirs = sample.ours_NS[:, :0] if sample.theirs_NS is None else sample.theirs_NS
        theirs_N = theirs.sum(axis=1)
        ours_passed, ours_drawn = _passed(sample.ours_NS.shape[1], k)
        theirs_passed, theirs_drawn = _passed(theirs.shape[1], k)
        values = ours_weight * ours_passed[:, None] - theirs_weight * theirs_passed
        places_N = ours_N * len(theirs_passed) + theirs_N
        given = np.bincount(places_N, minlength=values.size).reshape(values.shape)
        redrawn = ours_drawn.T @ given @ theirs_drawn
        drawn_C, places = np.unique(values, return_inverse=True)
        chances_C = np.bincount(places.ravel(), redrawn.ravel())
        found.append(_Seed(values.ravel()[places_N], drawn_C, chances_C / chances_C.sum()))
    return found


@functools.cache
def _passed(samples: int, k: int) -> tuple[Floats, Floats]:
    """Return what a problem can show, by the number of its correct samples.

    Returns:
        pass@k, [S + 1], 0 of a model without samples; and, [S + 1, S + 1], how likely each number
        is when S of these samples are drawn anew.
    """
    counts = np.arange(samples + 1)
    passed = pass_at_k(counts, samples, k) if samples else np.zeros(1)
    share = counts[:, None] / max(samples, 1)
    ways = np.array([math.comb(samples, count) for count in counts], dtype=np.float64)
    drawn: Floats = ways * share**counts * (1.0 - share) ** (samples - counts)
    return passed, drawn


def _half(seeds: Sequence[_Seed], seed: int, resamples: int) -> float:
    """Return how far 95 % of the deviations of the mean over seeds reach."""
    generator = np.random.default_rng(seed)
    count = len(seeds)
    chosen_Rn = generator.integers(count, size=(resamples, count))
    means_n = np.array([one.mean for one in seeds])
    above = means_n[chosen_Rn].mean(axis=1) - means_n.mean()
    if (reached := float(np.quantile(np.abs(above), CONFIDENCE))) > 0.0:
        above *= student_975(count - 1) * means_n.std(ddof=1) / math.sqrt(count) / reached
    within_Rn = np.empty(chosen_Rn.shape)
    for place, one in enumerate(seeds):
        is_chosen = chosen_Rn == place
        within_Rn[is_chosen] = one.deviations(int(is_chosen.sum()), generator)
    return float(np.quantile(np.abs(above + within_Rn.mean(axis=1)), CONFIDENCE))


def _score_interval(share: float, half: float) -> tuple[float, float]:
    """Solve (share - x)^2 = variance(x) for x, with a variance in proportion to x (1 - x)."""
    if not 0.0 < share < 1.0:
        return share, share
    scale = half**2 / (share * (1.0 - share))
    middle = 2.0 * share + scale
    root = math.sqrt(scale**2 + 4.0 * scale * share * (1.0 - share))
    return (middle - root) / (2.0 + 2.0 * scale), (middle + root) / (2.0 + 2.0 * scale)


def _estimate(
    value: float,
    interval: tuple[float, float],
    bounds: tuple[float, float],
    seeds: Sequence[_Seed],
) -> Estimate:
    low, high = interval
    if bounds == (0.0, 1.0) or _is_constant(seeds):
        least, most = luck(value, bounds, _count(seeds))
        low, high = min(low, least), max(high, most)
    return Estimate(value, max(low, bounds[0]), min(high, bounds[1]), len(seeds))


def _is_constant(seeds: Sequence[_Seed]) -> bool:
    """Tell whether all problems of all seeds have one value, up to rounding."""
    return bool(np.ptp(np.concatenate([one.values_N for one in seeds])) < 1e-12)


def _count(seeds: Sequence[_Seed]) -> int:
    return sum(len(one.values_N) for one in seeds)
