"""Figures of one measurement, and of two on the same problems."""

import numpy as np
import pytest

from tests.measurements import answers, measurement
from ziphius.evals.errors import EvalError
from ziphius.evals.intervals import mean_interval
from ziphius.evals.measure import Measurement, solved
from ziphius.evals.summary import paired_difference, paired_share, summarize, summarize_slices


def test_a_summary_has_the_means_of_its_slices() -> None:
    found = measurement({"easy": [4, 2], "hard": [0, 1]}, samples=4)
    whole = summarize(found, k=4)
    assert (whole.name, whole.problems, whole.samples) == ("easy + hard", 4, 4)
    assert whole.pass_at_1.value == pytest.approx(7 / 16)
    assert whole.pass_at_k.value == pytest.approx(3 / 4)
    assert whole.tokens.value == 11.5
    assert whole.corrections.value == 1.0
    assert whole.truncated == pytest.approx(3 / 16)

    easy, hard = summarize_slices(found, k=2)
    assert (easy.name, hard.name) == ("easy", "hard")
    assert easy.pass_at_1.value == pytest.approx(3 / 4)
    assert hard.pass_at_k.value == pytest.approx(1 / 4)
    assert summarize(found, k=2, name="all", slices=["hard"]).name == "all"


def test_the_pass_rates_have_bounds() -> None:
    found = summarize(measurement({"easy": [4] * 20}, samples=4), k=4)
    assert found.pass_at_1.low == pytest.approx(0.8316, abs=1e-4)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(EvalError, match="Nothing was measured"):
        summarize(Measurement((), 1.0), k=1)


def correlated(gain: float) -> tuple[Measurement, Measurement]:
    """Two models for which the same problems are hard, the first a little better at each."""
    generator = np.random.default_rng(2)
    chances = generator.beta(0.7, 0.7, size=200)
    better = np.clip(chances + gain, 0, 1)
    return tuple(  # type: ignore[return-value]
        measurement({"mixed": generator.binomial(8, chance).tolist()}, samples=8)
        for chance in (better, chances)
    )


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    ours, theirs = correlated(gain=0.05)
    paired = paired_difference(ours, theirs)
    draws = [
        mean_interval(solved(one.problems, 1), seed=seed) for seed, one in enumerate((ours, theirs))
    ]
    unpaired = np.hypot(*(interval.high - interval.low for interval in draws))
    assert paired.value == pytest.approx(draws[0].value - draws[1].value)
    assert paired.high - paired.low < 0.6 * unpaired
    assert paired.low > 0.0


def test_no_gain_is_not_found() -> None:
    assert paired_difference(*correlated(gain=0.0)).covers(0.0)


def test_problems_are_matched_by_their_key() -> None:
    ours = Measurement((answers("s", "a", 2, 2), answers("s", "b", 0, 2)), 1.0)
    theirs = Measurement((answers("s", "b", 0, 2), answers("s", "a", 2, 2)), 1.0)
    difference = paired_difference(ours, theirs)
    assert difference.value == 0.0
    # Equal for every problem: the interval is that of luck alone, wide for two problems.
    assert difference.high == pytest.approx(1 - 0.025**0.5)


def test_a_difference_can_be_of_one_slice_and_of_pass_at_k() -> None:
    ours = measurement({"easy": [2, 2], "hard": [1, 1]}, samples=2)
    theirs = measurement({"easy": [0, 0], "hard": [1, 1]}, samples=2)
    assert paired_difference(ours, theirs, slices=["easy"]).value == 1.0
    assert paired_difference(ours, theirs, slices=["hard"]).value == 0.0
    assert paired_difference(ours, theirs, k=2).value == 0.5


def test_a_share_is_of_the_means() -> None:
    ours = measurement({"easy": [1, 2, 3] * 10}, samples=4)
    theirs = measurement({"easy": [2, 4, 4] * 10}, samples=4)
    share = paired_share(ours, theirs)
    assert share is not None
    assert share.value == pytest.approx(6 / 10)
    assert 0.5 < share.low < 0.6 < share.high < 0.7
    assert paired_share(ours, measurement({"easy": [0] * 30}, samples=4)) is None


def test_other_problems_cannot_be_compared() -> None:
    ours, theirs = measurement({"a": [1, 1]}, samples=2), measurement({"a": [1, 1, 1]}, samples=2)
    with pytest.raises(EvalError, match="differ in 1 problems"):
        paired_difference(ours, theirs)
    with pytest.raises(EvalError, match="differ in 1 problems"):
        paired_difference(theirs, ours)
