"""Intervals over seeds cover the truth of simulated runs whose seeds differ."""

import functools
import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from ziphius.evals.errors import EvalError
from ziphius.evals.hierarchical import SeedSample, seed_interval, seed_ratio
from ziphius.evals.intervals import Estimate, mean_interval

EXPERIMENTS, SEEDS, PROBLEMS, SAMPLES = 400, 5, 80, 8
RESAMPLES = 100
SPREAD = 2.0
"""Both parameters of the beta that problems draw their chance from, together."""
SHARES = (0.02, 0.1, 0.5, 0.9, 0.98)
SEED_SDS = (0.0, 0.3, 0.8)
BEHIND = 0.5
"""How far theirs is behind ours, on the scale of logits."""


def shares_of_seeds(
    share: float, sd: float, generator: np.random.Generator, *shape: int
) -> NDArray[np.float64]:
    logits = math.log(share / (1 - share)) + sd * generator.normal(size=shape)
    return 1 / (1 + np.exp(-logits))


def true_share(share: float, sd: float) -> float:
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = math.log(share / (1 - share)) + sd * points
    return float(weights @ (1 / (1 + np.exp(-logits))) / weights.sum())


def behind(share: float) -> float:
    return 1 / (1 + (1 - share) / share * math.exp(BEHIND))


@functools.cache
def experiments(share: float, sd: float) -> list[list[SeedSample]]:
    """Simulate what two models do whose seeds have their own shares of the same hard problems.

    A chance is beta(a, b) with a + b = 2, drawn as a pair of gammas, of which the two models have
    as much in common as their shares allow.
    """
    generator = np.random.default_rng(17)
    shape = (EXPERIMENTS, SEEDS, 1)
    both = [shares_of_seeds(one, sd, generator, *shape) for one in (share, behind(share))]
    right = coupled_gammas([SPREAD * one for one in both], generator)
    wrong = coupled_gammas([SPREAD * (1 - one) for one in both], generator)
    correct = []
    for ups, downs in zip(right, wrong, strict=True):
        chances = (ups / (ups + downs))[..., None]
        correct.append(generator.random((*chances.shape[:-1], SAMPLES)) < chances)
    return [
        [SeedSample(*seed) for seed in zip(*experiment, strict=True)]
        for experiment in zip(*correct, strict=True)
    ]


def coupled_gammas(
    shapes: list[NDArray[np.float64]], generator: np.random.Generator
) -> list[NDArray[np.float64]]:
    size = (EXPERIMENTS, SEEDS, PROBLEMS)
    least = np.minimum(*shapes)
    common = generator.gamma(least, size=size)
    return [common + generator.gamma(one - least, size=size) for one in shapes]


def alone(seeds: list[SeedSample]) -> list[SeedSample]:
    return [SeedSample(seed.ours_NS) for seed in seeds]


def check(found: list[Estimate], truth: float) -> None:
    """Hold intervals to their rate, and their width to 1.96 true standard errors each way."""
    assert np.mean([one.covers(truth) for one in found]) >= 0.925
    oracle = 2 * 1.96 * np.std([one.value for one in found])
    assert 1.0 < np.mean([one.high - one.low for one in found]) / oracle < 2.5


@pytest.mark.parametrize("sd", SEED_SDS)
@pytest.mark.parametrize("share", SHARES)
def test_an_interval_of_a_share_covers_it(share: float, sd: float) -> None:
    runs = experiments(share, sd)
    found = [seed_interval(alone(seeds), resamples=RESAMPLES) for seeds in runs]
    assert all(0.0 <= one.low <= one.value <= one.high <= 1.0 for one in found)
    check(found, true_share(share, sd))


@pytest.mark.parametrize("sd", [0.0, 0.8])
@pytest.mark.parametrize("share", SHARES)
def test_an_interval_of_a_paired_difference_covers_it(share: float, sd: float) -> None:
    found = [seed_interval(seeds, resamples=RESAMPLES) for seeds in experiments(share, sd)]
    check(found, true_share(share, sd) - true_share(behind(share), sd))


@pytest.mark.parametrize(("share", "sd"), [(0.1, 0.3), (0.5, 0.8), (0.98, 0.0)])
def test_an_interval_of_a_ratio_covers_it(share: float, sd: float) -> None:
    found = [seed_ratio(seeds, resamples=RESAMPLES) for seeds in experiments(share, sd)]
    known = [one for one in found if one is not None]
    assert len(known) > 0.95 * EXPERIMENTS
    check(known, true_share(share, sd) / true_share(behind(share), sd))


def test_an_interval_over_the_problems_of_one_seed_would_not_cover() -> None:
    """Another seed would have made another model, of which no problem of this one knows."""
    share, sd = 0.5, 0.8
    values = [
        seeds[0].ours_NS.mean(axis=1) - seeds[0].theirs_NS.mean(axis=1)  # type: ignore[union-attr]
        for seeds in experiments(share, sd)
    ]
    found = [mean_interval(one, resamples=RESAMPLES) for one in values]
    truth = true_share(share, sd) - true_share(behind(share), sd)
    assert np.mean([one.covers(truth) for one in found]) < 0.5


def test_an_interval_over_the_problems_of_all_seeds_would_not_cover() -> None:
    share, sd = 0.5, 0.8
    found = [
        mean_interval(
            np.concatenate([seed.ours_NS.mean(axis=1) for seed in seeds]), resamples=RESAMPLES
        )
        for seeds in experiments(share, sd)
    ]
    assert np.mean([one.covers(true_share(share, sd)) for one in found]) < 0.7


EXAMPLE = (0.5, 0.3)


def test_where_seeds_differ_a_lot_it_is_students_interval() -> None:
    seeds = [SeedSample(np.arange(40)[:, None] < right) for right in (4, 12, 20, 30, 38)]
    theirs = [SeedSample(seed.ours_NS, np.zeros((40, 1), dtype=bool)) for seed in seeds]
    shares = np.array([4, 12, 20, 30, 38]) / 40
    found = seed_interval(theirs)
    assert found.value == pytest.approx(shares.mean())
    student = 2.776 * shares.std(ddof=1) / math.sqrt(5)
    assert found.high - found.value == pytest.approx(student, rel=0.06)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_swapping_the_models_flips_the_sign_and_nothing_else(k: int) -> None:
    for seeds in experiments(*EXAMPLE)[:20]:
        swapped = [SeedSample(seed.theirs_NS, seed.ours_NS) for seed in seeds]  # type: ignore[arg-type]
        ours, theirs = (seed_interval(one, k=k, resamples=100) for one in (seeds, swapped))
        assert (ours.value, ours.low, ours.high) == (-theirs.value, -theirs.high, -theirs.low)


def test_the_models_may_have_different_numbers_of_samples() -> None:
    seeds = [SeedSample(one.ours_NS, one.theirs_NS[:, :1]) for one in experiments(*EXAMPLE)[0]]  # type: ignore[index]
    found = seed_interval(seeds)
    wanted = np.mean([one.ours_NS.mean() - one.theirs_NS.mean() for one in seeds])  # type: ignore[union-attr]
    assert found.value == pytest.approx(wanted)


def test_seeds_have_one_weight_whatever_their_problems() -> None:
    seeds = [SeedSample(np.ones((10, 1), dtype=bool)), SeedSample(np.zeros((30, 1), dtype=bool))]
    found = seed_interval(seeds)
    assert (found.value, found.seeds) == (0.5, 2)


@pytest.mark.parametrize("k", [1, 8])
def test_with_one_seed_it_is_the_interval_over_problems(k: int) -> None:
    seeds = experiments(*EXAMPLE)[1][:1]
    found = seed_interval(seeds, k=k)
    rates = [
        1 - (1 - one).all(axis=1) if k == 8 else one.mean(axis=1)
        for one in (1 * seeds[0].ours_NS, 1 * seeds[0].theirs_NS)  # type: ignore[operator]
    ]
    wanted = mean_interval(rates[0] - rates[1])
    assert found.seeds == wanted.seeds == 1
    assert found.value == pytest.approx(wanted.value)
    assert found.high - found.low == pytest.approx(wanted.high - wanted.low, rel=0.1)


def test_all_correct_is_not_certain_to_be_all_correct() -> None:
    """Clopper and Pearson's bound for 20 of 20 is 0.8316."""
    right = [SeedSample(np.ones((4, 8), dtype=bool)) for _ in range(5)]
    found = seed_interval(right)
    assert (found.value, found.high, found.seeds) == (1.0, 1.0, 5)
    assert found.low == pytest.approx(0.8316, abs=1e-4)
    both = [SeedSample(one.ours_NS, one.ours_NS) for one in right]
    difference = seed_interval(both)
    assert difference.low == -difference.high == pytest.approx(-0.1684, abs=1e-4)
    ratio = seed_ratio(both)
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((0.8316, 1.1684), abs=1e-4)


def test_nearly_all_correct_is_no_surer_than_all_correct() -> None:
    seeds = [SeedSample(np.ones((80, 8), dtype=bool)) for _ in range(5)]
    seeds[0].ours_NS[0, :4] = False
    found = seed_interval(seeds, k=4)
    assert found.low <= 0.025 ** (1 / 400) < found.value < found.high


def test_two_seeds_say_little_but_stay_within_bounds() -> None:
    right, wrong = np.ones((10, 1), dtype=bool), np.zeros((10, 1), dtype=bool)
    found = seed_interval([SeedSample(right, wrong), SeedSample(right, right)])
    assert found == Estimate(0.5, -1.0, 1.0, seeds=2)
    alone = seed_interval([SeedSample(right), SeedSample(wrong)])
    assert 0.0 < alone.low < 0.01
    assert 0.99 < alone.high < 1.0


def test_the_draws_hang_on_their_seed_alone() -> None:
    seeds = experiments(*EXAMPLE)[0]
    assert seed_interval(seeds, seed=3) == seed_interval(seeds, seed=3)
    assert seed_interval(seeds, seed=3) != seed_interval(seeds, seed=4)


def test_a_figure_of_a_whole_job_takes_little_memory() -> None:
    generator = np.random.default_rng(0)
    seeds = [SeedSample(*generator.random((2, 240, 8)) < 0.4) for _ in range(5)]
    tracemalloc.start()
    seed_interval(seeds, resamples=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_there_is_no_ratio_to_what_may_be_nothing() -> None:
    nothing = np.zeros((20, 4), dtype=bool)
    ours = np.ones((20, 4), dtype=bool)
    once = nothing.copy()
    once[0, 0] = True
    assert seed_ratio([SeedSample(ours, nothing)] * 3) is None
    assert seed_ratio([SeedSample(ours, one) for one in (nothing, nothing, once)]) is None
    none_of_all = seed_ratio([SeedSample(nothing, ours)] * 3)
    assert none_of_all is not None
    assert (none_of_all.value, none_of_all.low) == (0.0, 0.0)
    assert none_of_all.high == pytest.approx(1 - 0.025 ** (1 / 60))


ONES = np.ones((3, 2), dtype=bool)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (np.ones((0, 2), dtype=bool), None, "at least one problem"),
        (np.ones((3, 0), dtype=bool), None, "at least one problem"),
        (np.ones(3, dtype=bool), None, "at least one problem"),
        (ONES, ONES[:2], "the same problems"),
        (ONES, ONES[:, 0], "the same problems"),
    ],
)
def test_a_seed_has_one_row_for_each_problem(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_] | None, message: str
) -> None:
    with pytest.raises(EvalError, match=message):
        SeedSample(ours, theirs)


def test_seeds_must_fit() -> None:
    alone, paired = SeedSample(ONES), SeedSample(ONES, ONES)
    with pytest.raises(EvalError, match="at least one seed"):
        seed_interval([])
    with pytest.raises(EvalError, match="all seeds have two models, or none"):
        seed_interval([alone, paired])
    with pytest.raises(EvalError, match="two models"):
        seed_ratio([alone])
    with pytest.raises(EvalError, match="pass@3 needs 3 samples"):
        seed_interval([alone], k=3)
