"""Intervals hold what they promise on data whose truth is known."""

import numpy as np
import pytest

from ziphius.evals.errors import EvalError
from ziphius.evals.intervals import Estimate, mean_interval, ratio_interval

CHANCES = np.random.default_rng(7).beta(2, 1, size=(400, 60))
"""Chance of a correct answer, of 60 problems in each of 400 worlds; the mean is 2/3."""
CORRECT = np.random.default_rng(8).binomial(8, CHANCES) / 8


def test_about_95_of_100_intervals_cover_the_truth() -> None:
    covering = [
        mean_interval(values, seed=world, resamples=1_000).covers(2 / 3)
        for world, values in enumerate(CORRECT)
    ]
    assert 0.91 < np.mean(covering) < 0.98


def test_an_interval_over_samples_alone_would_not() -> None:
    """Samples of one problem resemble each other: 480 answers do not stand for 480 problems."""
    too_narrow = np.sqrt(2 / 3 * 1 / 3 / (60 * 8)) * 1.96
    assert np.mean(np.abs(CORRECT.mean(axis=1) - 2 / 3) < too_narrow) < 0.85


def test_the_width_is_that_of_the_normal_approximation_where_that_is_good() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=2_000)
    found = mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(2_000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert mean_interval(CORRECT[0], seed=3) == mean_interval(CORRECT[0], seed=3)
    assert mean_interval(CORRECT[0], seed=3) != mean_interval(CORRECT[0], seed=4)


def test_memory_for_the_draws_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_interval(CORRECT[0], resamples=1_001)
    monkeypatch.setattr("ziphius.evals.intervals.PAIRS_AT_ONCE", 7_000)
    assert mean_interval(CORRECT[0], resamples=1_001) == whole


def test_all_correct_is_not_certain_to_be_all_correct() -> None:
    """Clopper and Pearson's bound for 20 of 20 is 0.8316."""
    found = mean_interval(np.ones(20), bounds=(0.0, 1.0))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.8316, abs=1e-4)
    assert mean_interval(np.zeros(20), bounds=(0.0, 1.0)).high == pytest.approx(
        1 - 0.8316, abs=1e-4
    )


def test_no_difference_anywhere_reaches_both_ways() -> None:
    found = mean_interval(np.zeros(20), bounds=(-1.0, 1.0))
    assert found.low == -found.high == pytest.approx(-0.1684, abs=1e-4)


def test_equal_values_without_bounds_have_no_width() -> None:
    assert mean_interval([12.0, 12.0]) == Estimate(12.0, 12.0, 12.0)


def test_a_ratio_of_values_that_go_together_is_known_well() -> None:
    reference = CORRECT[0] + 0.1
    found = ratio_interval(0.8 * reference, reference)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((0.8, 0.8, 0.8))


def test_a_ratio_covers_the_truth() -> None:
    pairs = zip(CORRECT[:200], np.random.default_rng(9).permuted(CORRECT[200:]), strict=True)
    found = [ratio_interval(ours, theirs, resamples=1_000) for ours, theirs in pairs]
    assert 0.90 < np.mean([ratio is not None and ratio.covers(1.0) for ratio in found]) < 0.99


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratio_interval([1.0, 1.0], [0.0, 0.0]) is None
    assert ratio_interval([1.0, 1.0], [0.0, 1.0]) is None


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_nothing_has_no_interval(values: list[float]) -> None:
    with pytest.raises(EvalError, match="at least one problem"):
        mean_interval(values)
