"""The first three sentences: what was compared, what was gained over the best control, what not."""

from dataclasses import replace
from typing import Any

import pytest

from tests.reports import example_report
from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.claims import NO_CLAIM, claim, claims
from ziphius.recipes.report.sections import Arm, Difference, Report, Taught
from ziphius.recipes.report.verdicts import findings

EXAMPLE = (
    "GRPO (36T FLOPs and 2 min 21 s beyond SFT) was compared with SFT (where it began), more SFT "
    "(from the same start, with 1.05x the FLOPs and 0.908x the time) and RFT (from the same start, "
    "with 1.02x the FLOPs and 1.06x the time), each asked in its own best way, which was chosen on "
    "development problems: 192 held-out problems, up to 8 answers to each.",
    "Over RFT, the best of these controls on development problems, GRPO gained 10.9 percentage "
    "points on 'mixed held-out set' (95 % interval of this one seed +3.1 to +18.8; both asked "
    "'greedy').",
    "No gain is shown in 22 of 63 comparisons (3 controls, 3 slices, 7 ways of asking): the "
    "interval includes 0 in 14 and lies below 0 in 8; the worst is 'one step harder' against RFT, "
    "pass@8: -30.2 points (-39.8 to -20.7).",
)
STUDENT = (
    "Over student alone, R1-Lite gained 4.1 percentage points on 'mixed held-out set' (95 % "
    "interval of this one seed +0.8 to +7.4; both asked 'think first')."
)


def plainly(sentences: list[str]) -> tuple[str, ...]:
    """Write the signs of the page in ASCII."""
    signs = str.maketrans({"\u2212": "-", "\u00d7": "x", "\u201c": "'", "\u201d": "'"})
    return tuple(sentence.translate(signs) for sentence in sentences)


def difference(low: float, high: float, **changes: Any) -> Difference:
    one = Difference(
        "mixed",
        "GRPO",
        "RFT",
        Estimate((low + high) / 2, low, high),
        ways=("greedy", "think first"),
        is_goal=True,
        is_best_control=True,
    )
    return replace(one, **changes)


def said(*differences: Difference, **sections: Any) -> tuple[str, ...]:
    return plainly(claims(Report("Title", "Purpose.", differences=differences, **sections)))


def test_the_example_says_what_its_figures_say() -> None:
    found = plainly(findings(example_report()))
    assert found[:3] == EXAMPLE
    assert found[3] == STUDENT


def test_swapped_measurements_say_the_opposite() -> None:
    found = plainly(findings(example_report(swapped=("GRPO", "RFT"))))
    assert found[1] == (
        "Against RFT, the best of these controls on development problems, GRPO lost 10.9 "
        "percentage points on 'mixed held-out set' (95 % interval of this one seed -18.8 to -3.1; "
        "both asked 'greedy')."
    )
    assert found[2] != EXAMPLE[2]
    students = plainly(findings(example_report(swapped=("R1-Lite", "student alone"))))
    assert students[:3] == EXAMPLE
    assert students[3].startswith("Against student alone, R1-Lite lost 4.1 percentage points")


def test_a_gain_is_said() -> None:
    assert said(difference(0.02, 0.10))[1] == (
        "Over RFT, the best of these controls on development problems, GRPO gained 6.0 percentage "
        "points on 'mixed' (95 % interval of this one seed +2.0 to +10.0; GRPO asked 'greedy', "
        "RFT 'think first')."
    )


@pytest.mark.parametrize("low", [-0.05, 0.0])
def test_an_interval_that_includes_0_is_no_gain(low: float) -> None:
    found = said(difference(low, 0.10))
    assert "GRPO is not shown to have gained anything" in found[1]
    assert "an interval that includes 0" in found[1]
    assert "in 1 of 1 comparison (1 control, 1 slice, 1 way of asking)" in found[2]


def test_a_loss_to_the_best_control_is_said_in_the_second_sentence() -> None:
    found = said(difference(-0.20, -0.10), difference(0.1, 0.2, theirs="SFT", is_goal=False))
    assert found[1].startswith(
        "Against RFT, the best of these controls on development problems, GRPO lost 15.0 "
        "percentage points on 'mixed'"
    )
    assert found[2] == (
        "No gain is shown in 1 of 2 comparisons (2 controls, 1 slice, 1 way of asking): the "
        "interval lies below 0 in 1; the worst is 'mixed' against RFT, each in its best way: "
        "-15.0 points (-20.0 to -10.0)."
    )


def test_gains_everywhere_are_said_with_the_smallest() -> None:
    found = said(difference(0.02, 0.10), difference(0.01, 0.03, way="greedy", is_goal=False))
    assert found[2] == (
        "The interval lies above 0 in all of 2 comparisons (1 control, 1 slice, 2 ways of "
        "asking); the smallest gain is 'mixed' against RFT, greedy: +2.0 points (+1.0 to +3.0)."
    )


def test_seeds_are_counted() -> None:
    over = Estimate(0.03, 0.01, 0.05, seeds=3)
    found = said(difference(0, 0, estimate=over, by_seed=(0.04, -0.01, 0.06)))
    assert found[0].endswith("development problems at each of 3 seeds.")
    assert "(95 % interval over 3 seeds +1.0 to +5.0; above 0 at 2 of 3 seeds; GRPO" in found[1]


def test_a_control_with_less_compute_or_another_start_is_called_that() -> None:
    spent = {"training_flops": 3.0e12, "training_s": 30.0, "start": "SFT"}
    arms = (
        Arm("SFT", "", (), training_flops=1.0e12, training_s=10.0),
        Arm("more SFT", "", (), training_flops=2.5e12, training_s=40.0, start="SFT"),
        Arm("RFT", "", (), **(spent | {"start": "base"})),
        Arm("GRPO", "", (), **spent),
    )
    against = [difference(0.1, 0.2, theirs=name) for name in ("SFT", "more SFT", "RFT", "other")]
    assert said(*against, arms=arms)[0] == (
        "GRPO (2T FLOPs and 20 s beyond SFT) was compared with SFT (where it began), more SFT "
        "(from the same start, with only 0.75x the FLOPs and 1.5x the time), RFT (from another "
        "start) and other, each asked in its own best way, which was chosen on development "
        "problems."
    )
    unknown = tuple(replace(arm, training_flops=None, training_s=None) for arm in arms)
    assert "more SFT (from the same start), RFT" in said(*against, arms=unknown)[0]


def test_a_way_that_all_were_asked_in_is_named() -> None:
    found = said(difference(0.1, 0.2, way="greedy", ways=("greedy", "greedy")))
    assert found[0] == "GRPO was compared with RFT, each asked 'greedy'."
    assert found[1].endswith("; both asked 'greedy').")


def test_the_claim_is_about_the_best_control_and_never_about_a_student() -> None:
    student = difference(0.1, 0.2, ours="Lite", theirs="alone", is_best_control=False)
    other = difference(0.3, 0.4, theirs="SFT", is_best_control=False)
    best = difference(0.02, 0.04)
    taught = (Taught("Lite", "GRPO"),)
    assert claim(Report("", "", differences=(student, other, best), taught=taught)) is best
    assert claim(Report("", "", differences=(student, other), taught=taught)) is other
    assert claim(Report("", "", differences=(student,), taught=taught)) is None
    assert claim(Report("", "", differences=(replace(best, is_goal=False),))) is None


def test_a_report_without_a_comparison_claims_nothing() -> None:
    assert said(arms=(Arm("SFT", "", ()),)) == (NO_CLAIM,)
    assert said() == ()
