"""The page says in words what its figures show, and above all what they do not."""

import re
from dataclasses import replace
from typing import Any

import pytest

from ziphius.evals.intervals import Estimate
from ziphius.evals.summary import Summary
from ziphius.recipes.report.sections import (
    Arm,
    Difference,
    ExpertLoad,
    Learning,
    LossCurve,
    Report,
    StageCost,
    Taught,
)
from ziphius.recipes.report.students import taught_table
from ziphius.recipes.report.verdicts import failures, findings, headlines

SURE = Estimate(0.5, 0.45, 0.55)


def report(**sections: Any) -> Report:
    return Report("Title", "Purpose.", **sections)


def difference(low: float, high: float, *, is_goal: bool = True) -> Difference:
    return Difference("mixed", "GRPO", "control", Estimate((low + high) / 2, low, high), is_goal)


def summary(**changes: Any) -> Summary:
    figures = Summary("mixed", 100, 8, 8, SURE, SURE, Estimate(9, 8, 10), Estimate(0, 0, 0), 0.0)
    return replace(figures, **changes)


def arm(name: str, **changes: Any) -> Arm:
    return replace(Arm(name, "made by hand", (summary(),)), **changes)


def test_a_gain_is_said_and_is_no_failure() -> None:
    found = report(differences=(difference(0.02, 0.10),))
    [said] = findings(found)
    assert said.startswith("GRPO beats control on \u201cmixed\u201d by 6.0 points")
    assert "+2.0 to +10.0" in said
    assert failures(found) == []
    assert headlines(found)[0].class_ == "better"


def test_an_interval_around_0_is_not_a_gain() -> None:
    found = report(differences=(difference(-0.01, 0.20),))
    assert "includes 0: this run does not show that one is better" in findings(found)[0]
    assert findings(found)[1].startswith("One thing did not work")
    [failure] = failures(found)
    assert failure.startswith(
        "No difference between GRPO and control is shown on \u201cmixed\u201d"
    )
    assert headlines(found)[0].class_ == "unsure"


def test_an_interval_that_ends_at_0_includes_it() -> None:
    found = report(differences=(difference(0.0, 0.20),))
    assert "includes 0" in findings(found)[0]
    assert len(failures(found)) == 1


def test_a_loss_is_said() -> None:
    found = report(differences=(difference(-0.20, -0.10),))
    assert findings(found)[0].startswith("GRPO is worse than control")
    assert failures(found)[0].startswith(
        "GRPO is worse than control on \u201cmixed\u201d (\u221215.0"
    )
    assert headlines(found)[0].class_ == "worse"


def test_a_side_result_is_no_headline_but_can_fail() -> None:
    found = report(differences=(difference(-0.20, 0.10, is_goal=False),))
    assert headlines(found) == []
    assert len(failures(found)) == 1


@pytest.mark.parametrize(
    ("kept", "failed", "class_"),
    [
        (Estimate(0.95, 0.90, 0.99), None, "better"),
        (Estimate(0.88, 0.80, 0.96), "reaches down to 80 %, below the 85 % wanted", "unsure"),
        (Estimate(0.80, 0.75, 0.90), "keeps 80.0 % .* 85 % were wanted", "worse"),
    ],
)
def test_a_student_must_keep_what_was_wanted(
    kept: Estimate, failed: str | None, class_: str
) -> None:
    found = report(taught=(Taught("Lite", "GRPO", kept=kept, least_kept=0.85),))
    check(found, failed)
    assert headlines(found)[0].class_ == class_


@pytest.mark.parametrize(
    ("lost", "failed", "class_"),
    [
        (Estimate(-0.005, -0.015, 0.01), None, "better"),
        (Estimate(-0.005, -0.03, 0.02), "may lose up to 3.0 points .* 2.0 allowed", "unsure"),
        (Estimate(-0.05, -0.06, -0.04), "loses 5.0 points .* 2.0 were allowed", "worse"),
    ],
)
def test_int8_must_not_lose_more_than_allowed(
    lost: Estimate, failed: str | None, class_: str
) -> None:
    found = report(taught=(Taught("INT8", "Lite", lost=lost, most_lost=0.02),))
    check(found, failed)
    assert headlines(found)[0].class_ == class_


def test_a_student_must_be_small_and_fast() -> None:
    arms = (
        arm("GRPO", parameters=900, tokens_per_s=100.0),
        arm("Lite", parameters=450, tokens_per_s=250.0),
    )
    taught = Taught("Lite", "GRPO", most_parameters=1 / 3, least_speed=3.0)
    size, speed = failures(report(arms=arms, taught=(taught,)))
    assert size == "Lite has 50 % of the parameters of GRPO; at most 33 % were wanted."
    assert speed == "Lite runs at 2.5\u00d7 the tokens/s of GRPO; 3\u00d7 was wanted."
    rows = {row.name: row for row in taught_table(taught, arms).rows}
    assert rows["parameters"].ratio == "0.5\u00d7"
    assert rows["tokens/s"].wanted == "\u2265 3\u00d7"
    loose = Taught("Lite", "GRPO", most_parameters=0.5, least_speed=2.5)
    assert failures(report(arms=arms, taught=(loose,))) == []


def test_a_slice_that_nobody_solves_is_named() -> None:
    low = summary(pass_at_1=Estimate(0.03, 0.02, 0.04))
    check(report(arms=(arm("SFT", slices=(low,)),)), r"No arm solves .*mixed.* 3\.0 %")
    check(report(arms=(arm("SFT", slices=(low,)), arm("GRPO"))), None)


def test_too_few_problems_are_named() -> None:
    wide = summary(problems=9, pass_at_1=Estimate(0.5, 0.3, 0.7))
    check(report(arms=(arm("SFT", slices=(wide,)),)), "With 9 problems .* up to 20.0 points")


def test_answers_cut_off_are_named_once_for_all_arms() -> None:
    cut = summary(truncated=0.2)
    found = report(arms=(arm("SFT", slices=(cut,)), arm("GRPO", slices=(cut,)), arm("Lite")))
    check(found, "20 % of SFT on .*mixed.* and 20 % of GRPO on .*mixed.*")


def test_a_loss_must_beat_the_bigram_floor() -> None:
    curve = LossCurve("pretrain", [1, 2], [5.0, 3.0], floors={"bigram": 3.5})
    check(report(losses=(curve,)), None)
    held_out = replace(curve, validation_steps=[2], validation_losses=[3.6])
    check(report(losses=(held_out,)), "pretrain ends at a loss of 3.6 on held-out text")


def test_learning_must_raise_the_reward_and_agree_with_the_rollout() -> None:
    good = Learning([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8], logprob_difference=[1e-6, 0.0, 1e-5])
    check(report(learning=good), None)
    check(report(learning=replace(good, reward=[0.8, 0.7, 0.6, 0.5])), "reward did not rise")
    check(report(learning=replace(good, dead_groups=[0.1, 0.1, 0.1, 0.9])), "90 % of the groups")
    check(
        report(learning=replace(good, logprob_difference=[1e-6, 2e-3])),
        "in 1 of 2 steps, by up to 0.002",
    )
    check(
        report(learning=replace(good, logprob_difference=[float("nan")])),
        "by up to not a number",
    )


def test_unbalanced_experts_are_named() -> None:
    even, uneven = [[5, 5, 5, 5]] * 10, [[5, 5, 5, 5]] * 9 + [[17, 1, 1, 1]]
    load = ExpertLoad("pretrain", list(range(10)), {1: even, 2: uneven})
    check(report(experts=load), r"layer 2 are not balanced: .* 3\.4 times")


def test_a_recipe_can_add_what_no_figure_shows() -> None:
    check(report(failures=("The moon was full.",)), "The moon was full.")


def test_the_whole_time_is_a_headline() -> None:
    costs = (StageCost("SFT", 30.0), StageCost("GRPO", 45.0))
    [total] = headlines(report(costs=costs))
    assert (total.value, total.detail) == ("1 min 15 s", "2 stages, listed below")


def check(found: Report, failed: str | None) -> None:
    """Hold the failures of a report to one pattern, or to none at all."""
    said = failures(found)
    if failed is None:
        assert said == []
    else:
        [sentence] = said
        assert re.search(failed, sentence), sentence
