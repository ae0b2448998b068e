"""The page says in words what its figures show, and above all what they do not.

Its first sentences have a test of their own (`test_report_claims.py`).
"""

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
from ziphius.recipes.report.students import size_table, spending_table, taught_table
from ziphius.recipes.report.verdicts import failures, findings, headlines

SURE = Estimate(0.5, 0.45, 0.55)


def report(**sections: Any) -> Report:
    return Report("Title", "Purpose.", **sections)


def difference(low: float, high: float, **changes: Any) -> Difference:
    one = Difference("mixed", "GRPO", "RFT", Estimate((low + high) / 2, low, high), is_goal=True)
    return replace(one, **changes)


def summary(**changes: Any) -> Summary:
    figures = Summary("mixed", 100, 8, 8, SURE, SURE, Estimate(9, 8, 10), Estimate(0, 0, 0), 0.0)
    return replace(figures, **changes)


def arm(name: str, **changes: Any) -> Arm:
    return replace(Arm(name, "made by hand", (summary(),)), **changes)


def test_a_gain_is_no_failure() -> None:
    found = report(differences=(difference(0.02, 0.10, is_best_control=True),))
    assert failures(found) == []
    [headline] = headlines(found)
    assert (headline.value, headline.class_) == ("+6.0", "better")
    assert headline.label == "points: GRPO less RFT, the best control, mixed"
    assert headline.detail == "95 % interval +2.0 to +10.0; each in its best way"


@pytest.mark.parametrize("low", [-0.01, 0.0])
def test_an_interval_that_includes_0_is_a_failure(low: float) -> None:
    found = report(differences=(difference(low, 0.20),))
    assert failures(found) == [
        "GRPO is not shown to be better than RFT in 1 of 1 comparison: \u201cmixed\u201d "
        "(each in its best way)."
    ]
    assert headlines(found)[0].class_ == "unsure"
    assert findings(found)[-1] == "One thing did not work or could not be shown; see below."


def test_a_loss_is_named_with_its_figures() -> None:
    lost = difference(-0.20, -0.10, way="greedy")
    found = report(differences=(difference(0.01, 0.02), difference(-0.01, 0.02, way="maj@8"), lost))
    assert failures(found) == [
        "GRPO is not shown to be better than RFT in 2 of 3 comparisons: \u201cmixed\u201d (maj@8, "
        "greedy). It is worse in 1 of them (greedy on \u201cmixed\u201d, \u221215.0 points "
        "(\u221220.0 to \u221210.0))."
    ]
    assert headlines(report(differences=(replace(lost, way="best mode"),)))[0].class_ == "worse"


def test_only_the_largest_losses_are_spelled_out() -> None:
    losses = tuple(difference(-0.2 - n / 100, -0.1, slice=f"slice {n}") for n in range(5))
    [failure] = failures(report(differences=losses))
    assert failure.startswith("GRPO is not shown to be better than RFT in any of 5 comparisons.")
    assert "It is worse in 5 of them" in failure
    assert failure.index("slice 4") < failure.index("slice 3") < failure.index("slice 2")
    assert "slice 1" not in failure
    assert failure.endswith("; and 2 more).")


def test_a_side_result_is_no_headline_but_can_fail() -> None:
    found = report(differences=(difference(-0.20, 0.10, is_goal=False),))
    assert headlines(found) == []
    assert len(failures(found)) == 1


def test_the_headline_is_the_gain_over_the_best_control() -> None:
    student = difference(0.1, 0.2, ours="Lite", theirs="alone", way="greedy")
    found = report(
        differences=(student, difference(0.3, 0.4), difference(0.02, 0.04, is_best_control=True)),
        taught=(Taught("Lite", "GRPO", kept=Estimate(0.9, 0.8, 1.0)),),
    )
    assert [one.value for one in headlines(found)] == ["+3.0", "+15.0", "+35.0", "90.0 %"]


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
        arm("GRPO", parameters=900, active_parameters=600, tokens_per_s=100.0),
        arm("Lite", parameters=450, active_parameters=450, tokens_per_s=250.0),
    )
    taught = Taught("Lite", "GRPO", most_parameters=1 / 3, least_speed=3.0)
    size, speed = failures(report(arms=arms, taught=(taught,)))
    assert size == (
        "Lite has 50 % of the parameters and 75 % of the active parameters of GRPO; at most 33 % "
        "of the parameters were wanted."
    )
    assert speed == "Lite runs at 2.5\u00d7 the tokens/s of GRPO; 3\u00d7 was wanted."
    rows = {row.name: row for row in taught_table(taught, arms).rows}
    assert rows["parameters"].ratio == "0.5\u00d7"
    assert rows["active parameters"].ratio == "0.75\u00d7"
    assert rows["tokens/s"].wanted == "\u2265 3\u00d7"
    loose = Taught("Lite", "GRPO", most_parameters=0.5, least_speed=2.5)
    assert failures(report(arms=arms, taught=(loose,))) == []


def test_a_size_is_said_in_every_count() -> None:
    arms = (
        arm("GRPO", parameters=900, active_parameters=600, flops_per_token=5e3, tokens_per_s=100.0),
        arm("Lite", parameters=450, active_parameters=450, flops_per_token=4e3, tokens_per_s=250.0),
        arm("INT8", parameters=450, active_parameters=450, flops_per_token=4e3, tokens_per_s=300.0),
    )
    kept = Taught("Lite", "GRPO", slice="mixed", way="greedy", kept=Estimate(0.9, 0.8, 1.0))
    lost = Taught("INT8", "Lite", lost=Estimate(-0.01, -0.02, 0.01))
    student, coarse = findings(report(arms=arms, taught=(kept, lost)))[1:]
    assert student == (
        "Lite keeps 90.0 % of the pass@1 of GRPO on \u201cmixed\u201d (95 % interval "
        "80\u2013100 %; both asked \u201cgreedy\u201d), at 2.5\u00d7 the tokens/s with 50 % of the "
        "parameters, 75 % of the active parameters and 80 % of the FLOPs a token."
    )
    assert coarse == (
        "INT8 is at \u22121.0 points against Lite (95 % interval \u22122.0 to +1.0), at 1.2\u00d7 "
        "the tokens/s."
    )


def test_the_tables_of_students_have_all_sizes_and_the_teachers_part() -> None:
    path = ("sft", "grpo")
    arms = (
        arm("RFT", stages=("sft", "rft")),
        arm("GRPO", stages=path, dtype="float32", parameters=900, training_flops=7e12),
        arm("Lite", stages=(*path, "traces", "lite"), dtype="float32", training_flops=9.5e12),
        arm("alone", stages=("alone",), training_flops=2.5e12),
        arm("INT8", stages=(*path, "traces", "lite", "int8"), dtype="int8"),
    )
    stages = (("sft", 3e12), ("grpo", 4e12), ("traces", 1e12), ("lite", 1.5e12), ("alone", 2.5e12))
    costs = (*(StageCost(name, 1.0, flops) for name, flops in stages), StageCost("int8", 1.0))
    found = report(
        arms=arms,
        costs=costs,
        taught=(Taught("Lite", "GRPO"), Taught("INT8", "Lite")),
        differences=(difference(0.1, 0.2, ours="Lite", theirs="alone"),),
    )
    sizes = size_table(found)
    assert [row[0] for row in sizes.rows] == ["GRPO", "Lite", "alone", "INT8"]
    assert sizes.rows[0][1:4] == ("float32", "900", "\u2013")
    assert sizes.rows[3][-1] == "50.0 [45\u201355] %"
    assert spending_table(found).rows == (
        ("Lite", "traces 1T + lite 1.5T", "2.5T", "9.5T"),
        ("alone", "alone 2.5T", "2.5T", "2.5T"),
        ("INT8", "traces 1T + lite 1.5T", "2.5T", "\u2013"),
    )


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


def test_a_loss_must_beat_the_bigram_baseline() -> None:
    curve = LossCurve("pretrain", [1, 2], [5.0, 3.0], baselines={"bigram": 3.5})
    check(report(losses=(curve,)), None)
    held_out = replace(curve, validation_steps=[2], validation_losses=[3.6])
    check(report(losses=(held_out,)), "pretrain ends at a loss of 3.6 on held-out text")


def test_learning_must_raise_the_reward_and_agree_with_the_rollout() -> None:
    good = Learning([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8], sampling_logp_difference=[1e-6, 0.0, 1e-5])
    check(report(learning=good), None)
    check(report(learning=replace(good, reward=[0.8, 0.7, 0.6, 0.5])), "reward did not rise")
    equal = replace(good, frac_reward_zero_std=[0.1, 0.1, 0.1, 0.9])
    check(report(learning=equal), "90 % of the groups had equal rewards")
    check(
        report(learning=replace(good, sampling_logp_difference=[1e-6, 2e-3])),
        "in 1 of 2 steps, by up to 0.002",
    )
    check(
        report(learning=replace(good, sampling_logp_difference=[float("nan")])),
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
