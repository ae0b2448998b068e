"""Figures of one measurement, and of two on the same problems."""

import numpy as np
import pytest

from tests.unit.evals.measurements import answers, measurement
from ziphius.evals.errors import EvalError
from ziphius.evals.intervals import mean_interval
from ziphius.evals.measure import Answers, Measurement, solved
from ziphius.evals.summary import (
    Figure,
    figure_of,
    figure_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
    paired_share,
    share_over_seeds,
    summarize,
    summarize_slices,
)


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
        summarize(Measurement((), 1.0, "SFT", "sampled"), k=1)


def correlated(gain: float) -> tuple[Measurement, Measurement]:
    """Two models for which the same problems are hard, the first a little better at each."""
    generator = np.random.default_rng(2)
    chances = generator.beta(0.7, 0.7, size=200)
    better = np.clip(chances + gain, 0, 1)
    return tuple(  # type: ignore[return-value]
        measurement({"mixed": generator.binomial(8, chance).tolist()}, samples=8, arm=arm)
        for arm, chance in (("GRPO", better), ("control", chances))
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
    both = (answers("s", "a", 2, 2), answers("s", "b", 0, 2))
    ours = Measurement(both, 1.0, "GRPO", "sampled")
    theirs = Measurement(both[::-1], 1.0, "control", "sampled")
    difference = paired_difference(ours, theirs)
    assert difference.value == 0.0
    # Equal for every problem: the interval is that of luck alone, wide for two problems.
    assert difference.high == pytest.approx(1 - 0.025**0.5)


def test_a_difference_can_be_of_one_slice_and_of_pass_at_k() -> None:
    ours = measurement({"easy": [2, 2], "hard": [1, 1]}, samples=2)
    theirs = measurement({"easy": [0, 0], "hard": [1, 1]}, samples=2, arm="control")
    assert paired_difference(ours, theirs, slices=["easy"]).value == 1.0
    assert paired_difference(ours, theirs, slices=["hard"]).value == 0.0
    assert paired_difference(ours, theirs, k=2).value == 0.5


def test_a_share_is_of_the_means() -> None:
    ours = measurement({"easy": [1, 2, 3] * 10}, samples=4)
    theirs = measurement({"easy": [2, 4, 4] * 10}, samples=4, arm="control")
    share = paired_share(ours, theirs)
    assert share is not None
    assert share.value == pytest.approx(6 / 10)
    assert 0.5 < share.low < 0.6 < share.high < 0.7
    nothing = measurement({"easy": [0] * 30}, samples=4, arm="control")
    assert paired_share(ours, nothing) is None


def test_other_problems_cannot_be_compared() -> None:
    ours = measurement({"a": [1, 1]}, samples=2)
    theirs = measurement({"a": [1, 1, 1]}, samples=2, arm="control")
    with pytest.raises(EvalError, match="differ in 1 problems"):
        paired_difference(ours, theirs)
    with pytest.raises(EvalError, match="differ in 1 problems"):
        paired_difference(theirs, ours)


def test_an_arm_is_not_compared_with_itself() -> None:
    """Two files of one arm were swapped, or one was read twice."""
    ours = measurement({"a": [1, 2]}, samples=2, arm="SFT")
    for compare in (paired_difference, paired_share):
        with pytest.raises(EvalError, match=r"Both measurements are of SFT \(sampled\)"):
            compare(ours, measurement({"a": [0, 2]}, samples=2, arm="SFT"))
    thinking = measurement({"a": [0, 2]}, samples=2, arm="SFT", mode="thinking")
    assert paired_difference(ours, thinking).value == 0.25


def said(slice_name: str, key: str, texts: str) -> Answers:
    """Make answers of one letter each; R is right."""
    samples = len(texts)
    return Answers(
        slice_name,
        "sums",
        1,
        key,
        answers=tuple(texts),
        correct=tuple(text == "R" for text in texts),
        tokens=(10,) * samples,
        corrections=(0,) * samples,
        truncated=(False,) * samples,
    )


def asked(seed: int, arm: str, *texts: str) -> Measurement:
    problems = tuple(
        said("easy" if place % 2 == 0 else "hard", f"{seed}-{place}", text)
        for place, text in enumerate(texts)
    )
    return Measurement(problems, 1.0 + seed, arm, "sampled")


VOTES = asked(0, "SFT", "RRRRabcd", "Rabcdefg", "abcdefRR", "aaaaabRR")


@pytest.mark.parametrize(
    ("figure", "value"),
    [("pass@1", (4 + 1 + 2 + 2) / 32), ("pass@8", 1.0), ("maj@8", 3 / 4)],
)
def test_a_figure_is_of_the_samples_or_of_their_majority(figure: Figure, value: float) -> None:
    found = figure_of(VOTES, figure)
    assert found.value == pytest.approx(value)
    assert figure_over_seeds([VOTES], figure).value == pytest.approx(value)
    assert 0.0 <= found.low < found.value
    assert found.high <= 1.0


def test_a_figure_can_be_of_one_slice() -> None:
    assert figure_of(VOTES, "maj@8", slices=["easy"]).value == 1.0
    assert figure_over_seeds([VOTES], "maj@8", slices=["hard"]).value == 0.5


def test_greedy_is_one_sample() -> None:
    greedy = measurement({"easy": [1, 0, 1, 1]}, samples=1, mode="greedy")
    assert figure_of(greedy, "greedy").value == 0.75


@pytest.mark.parametrize(
    ("figure", "texts", "message"),
    [
        ("greedy", ("Ra", "Rb"), r"greedy needs 1, .* there are: 2\."),
        ("maj@8", ("Rab", "Rab"), r"maj@8 needs 8, .* there are: 3\."),
        ("pass@1", ("Rab", "Ra"), r"pass@1 needs the same number .* there are: 2, 3\."),
        ("pass@8", ("Rab", "Rab"), "pass@8 needs 8 samples"),
        ("pass@1", (), r"pass@1 needs .* there are: none\."),
    ],
)
def test_a_figure_needs_its_samples(figure: Figure, texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        figure_of(asked(0, "SFT", *texts), figure)


def runs(arm: str, gain: float, *, mode: str = "sampled") -> list[Measurement]:
    """Measure an arm at five seeds, whose problems differ and whose luck in training does too."""
    found = []
    for seed in range(5):
        chances = np.random.default_rng(seed).beta(1, 1, size=60)
        luck = np.random.default_rng((seed, len(arm)))
        chances = np.clip(chances + gain + luck.normal(0, 0.02), 0, 1)
        counts = luck.binomial(8, chances).tolist()
        slices = {"easy": counts[:30], "hard": counts[30:]}
        found.append(measurement(slices, 8, arm=arm, mode=mode, prefix=f"{seed}-"))
    return found


def test_a_gain_is_found_over_seeds() -> None:
    ours, theirs = runs("GRPO", 0.2), runs("control", 0.0)
    single = [paired_difference(one, other).value for one, other in zip(ours, theirs, strict=True)]
    found = paired_difference_over_seeds(ours, theirs, "pass@1")
    assert found.value == pytest.approx(np.mean(single))
    assert found.seeds == 5
    assert 0.0 < found.low < found.high < 0.4
    back = paired_difference_over_seeds(theirs, ours, "pass@1")
    assert (back.low, back.high) == (-found.high, -found.low)
    hard = paired_difference_over_seeds(ours, theirs, "pass@8", slices=["hard"])
    single = [
        paired_difference(one, other, k=8, slices=["hard"]).value
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert hard.value == pytest.approx(np.mean(single))


def test_one_arm_is_measured_over_seeds() -> None:
    found = figure_over_seeds(runs("GRPO", 0.0), "pass@1")
    single = [figure_of(one, "pass@1") for one in runs("GRPO", 0.0)]
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    assert found.seeds == 5
    assert all(one.seeds == 1 for one in single)


def test_a_share_over_seeds_is_of_the_means() -> None:
    ours, theirs = runs("R1-Lite", 0.0), runs("GRPO", 0.2)
    found = share_over_seeds(ours, theirs, "maj@8")
    assert found is not None
    means = [figure_over_seeds(one, "maj@8").value for one in (ours, theirs)]
    assert found.value == pytest.approx(means[0] / means[1])
    assert found.low < found.value < found.high
    nothing = [asked(seed, "GRPO", "aaaaaaaa", "bbbbbbbb") for seed in range(5)]
    right = [asked(seed, "R1-Lite", "RRRRRRRR", "RRRRRRRR") for seed in range(5)]
    assert share_over_seeds(right, nothing, "pass@1") is None


def test_a_mode_of_one_sample_is_compared_with_one_of_many() -> None:
    ours = [measurement({"a": [1, 1]}, 1, mode="greedy", prefix=f"{seed}-") for seed in range(3)]
    theirs = [measurement({"a": [0, 4]}, 8, mode="thinking", prefix=f"{n}-") for n in range(3)]
    assert paired_difference_over_seeds(ours, theirs, "pass@1").value == 0.75


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (["GRPO", "GRPO"], ["GRPO", "GRPO"], r"Both measurements are of GRPO \(sampled\)"),
        (["GRPO", "SFT"], ["SFT", "GRPO"], r"one mode.*GRPO \(sampled\), SFT \(sampled\)\."),
        (["GRPO", "GRPO"], ["SFT", "RFT"], r"one mode.*RFT \(sampled\), SFT \(sampled\)\."),
        (["GRPO", "GRPO"], ["SFT"], "2 seeds cannot be compared with 1"),
        ([], [], "given: none"),
    ],
)
def test_arms_that_were_mixed_up_are_refused(
    ours: list[str], theirs: list[str], message: str
) -> None:
    given = [
        [asked(seed, arm, "RRRRabcd", "Rabcdefg") for seed, arm in enumerate(arms)]
        for arms in (ours, theirs)
    ]
    for compare in (paired_difference_over_seeds, share_over_seeds):
        with pytest.raises(EvalError, match=message):
            compare(*given, "pass@1")


def test_seeds_in_another_order_have_other_problems() -> None:
    ours, theirs = runs("GRPO", 0.2), runs("control", 0.0)
    with pytest.raises(EvalError, match="differ in"):
        paired_difference_over_seeds(ours, theirs[::-1], "pass@1")


def test_one_file_is_not_two_seeds() -> None:
    ours = runs("GRPO", 0.2)
    with pytest.raises(EvalError, match=r"One measurement of GRPO \(sampled\) is given for two"):
        figure_over_seeds([*ours, ours[0]], "pass@1")
