"""`recipes/comparison.py`: which arm is better, asked how, and that swapped arms are noticed."""

from collections.abc import Mapping

import pytest

from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, Answers, Measurement
from ziphius.recipes.arms import Asked
from ziphius.recipes.comparison import (
    BEST,
    MIXED,
    SLICES,
    WAYS,
    against_controls,
    best_control,
    best_way,
    compare,
    figures,
)

PROBLEMS = 40
RIGHT = {
    # of 8 samples; of 1, greedy: on a share of the problems
    "SFT": {"sampled": 2, "thinking": 3, "cool": 3, "greedy": 0.5},
    "more SFT": {"sampled": 3, "thinking": 3, "cool": 4, "greedy": 0.3},
    "RFT": {"sampled": 4, "thinking": 4, "cool": 4, "greedy": 0.6},
    "GRPO": {"sampled": 6, "thinking": 6, "cool": 5, "greedy": 0.65},
}


def measurement(arm: str, mode: str, right: float, split: str) -> Measurement:
    samples = 1 if mode == "greedy" else 8
    answers = []
    for number in range(PROBLEMS):
        count = number < right * PROBLEMS if mode == "greedy" else int(right)
        correct = tuple(sample < count for sample in range(samples))
        answers.append(
            Answers(
                (IN_DISTRIBUTION, HARDER)[number % 2],
                "task",
                1 + number % 2,
                f"{split} {number}",
                answers=tuple("right" if one else f"wrong {i}" for i, one in enumerate(correct)),
                correct=correct,
                tokens=(5,) * samples,
                corrections=(0,) * samples,
                truncated=(False,) * samples,
            )
        )
    return Measurement(tuple(answers), 1.0, arm, mode)


def seed_of(right: Mapping[str, Mapping[str, float]] = RIGHT, seed: int = 0) -> dict[str, Asked]:
    return {
        arm: Asked(
            {mode: measurement(arm, mode, share, f"test {seed}") for mode, share in modes.items()},
            {mode: measurement(arm, mode, share, f"dev {seed}") for mode, share in modes.items()},
        )
        for arm, modes in right.items()
    }


def test_each_arm_is_asked_in_the_way_that_suits_it_on_other_problems() -> None:
    seeds = [seed_of()]
    assert {arm: best_way(seeds, arm) for arm in RIGHT} == {
        "SFT": "greedy",
        "more SFT": "cooler",
        "RFT": "greedy",
        "GRPO": "as trained",
    }
    assert best_control(seeds) == "RFT"


def test_the_best_way_is_never_chosen_on_the_test() -> None:
    asked = seed_of()["SFT"]
    misleading = {"greedy": measurement("SFT", "greedy", 0.0, "dev")}
    other = Asked(asked.test, {**asked.development, **misleading})
    assert best_way([{"SFT": asked}], "SFT") == "greedy"
    assert best_way([{"SFT": other}], "SFT") == "think first"


def test_the_headline_compares_best_with_best() -> None:
    found = compare([seed_of()], "GRPO", "RFT", MIXED)
    assert (found.way, found.ways) == (BEST, ("as trained", "greedy"))
    assert found.estimate.value == pytest.approx(6 / 8 - 0.6)


def test_swapping_two_arms_measurements_changes_the_sign() -> None:
    swapped = RIGHT | {"GRPO": RIGHT["RFT"], "RFT": RIGHT["GRPO"]}
    ours = against_controls([seed_of()])
    theirs = against_controls([seed_of(swapped)])
    for one, other in zip(ours, theirs, strict=True):
        if one.theirs == "RFT" and one.way in ("as trained", "think first", "cooler", "greedy"):
            assert one.estimate.value == pytest.approx(-other.estimate.value)
            assert one.estimate.value > 0


def test_every_control_slice_and_way_is_compared() -> None:
    found = {(one.theirs, one.slice, one.way) for one in against_controls([seed_of()])}
    controls = ("SFT", "more SFT", "RFT")
    assert found == {(c, s, w) for c in controls for s in SLICES for w in (BEST, *WAYS)}


def test_a_majority_needs_no_more_right_answers_than_wrong_ones_agree() -> None:
    """Wrong answers differ among themselves here, so two right ones of eight are the majority."""
    assert figures([seed_of()], "SFT", "maj@8", MIXED).value == 1.0
    assert figures([seed_of()], "SFT", "think first", MIXED).value == pytest.approx(3 / 8)


def test_seeds_are_shown_one_by_one_and_together() -> None:
    weaker = RIGHT | {"GRPO": {"sampled": 5, "thinking": 5, "cool": 5, "greedy": 0.6}}
    found = compare([seed_of(), seed_of(weaker, seed=1)], "GRPO", "more SFT", MIXED, "think first")
    assert found.by_seed == pytest.approx((3 / 8, 2 / 8))
    assert found.estimate.value == pytest.approx(5 / 16)


def test_an_arm_that_is_missing_is_left_out() -> None:
    without = {arm: modes for arm, modes in RIGHT.items() if arm != "RFT"}
    assert {one.theirs for one in against_controls([seed_of(without)])} == {"SFT", "more SFT"}
