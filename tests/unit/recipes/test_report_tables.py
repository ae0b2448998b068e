"""Arms in every way, and differences to every control, as they are laid out."""

from dataclasses import replace

from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.sections import BEST_WAY, AskedRow, Difference
from ziphius.recipes.report.tables import Gap, asked_table, difference_tables, in_order

HALF = Estimate(0.5, 0.4, 0.6)


def difference(slice_name: str, theirs: str, way: str, value: float = 0.1) -> Difference:
    estimate = Estimate(value, value - 0.05, value + 0.05)
    return Difference(slice_name, "GRPO", theirs, estimate, way=way, ways=("greedy", "think first"))


def test_every_arm_stands_in_every_way_on_every_slice() -> None:
    rows = [
        AskedRow("SFT", "greedy", {"easy": HALF, "hard": HALF}),
        AskedRow("SFT", "maj@8", {"easy": HALF}),
        AskedRow("GRPO", "greedy", {"easy": HALF, "hard": HALF}, is_best=True),
        AskedRow("GRPO", "on its head", {"hard": HALF}),
    ]
    table = asked_table(rows)
    assert table.ways == ("greedy", "maj@8", "on its head")
    assert [way for way, _ in table.explained] == ["greedy", "maj@8"]
    found = {
        (part, arm): [(cell.estimate is HALF, cell.is_best) for cell in cells]
        for part, arms in table.slices
        for arm, cells in arms
    }
    assert found == {
        ("easy", "SFT"): [(True, False), (True, False), (False, False)],
        ("easy", "GRPO"): [(True, True), (False, False), (False, False)],
        ("hard", "SFT"): [(True, False), (False, False), (False, False)],
        ("hard", "GRPO"): [(True, True), (False, False), (True, False)],
    }


def test_what_the_run_is_about_comes_first() -> None:
    goal = replace(difference("hard", "RFT", BEST_WAY), is_goal=True, is_best_control=True)
    given = [
        difference("easy", "SFT", "greedy"),
        difference("easy", "SFT", BEST_WAY),
        difference("hard", "SFT", BEST_WAY),
        difference("easy", "RFT", "greedy", -0.1),
        goal,
        replace(difference("easy", "alone", "greedy"), ours="Lite"),
    ]
    assert in_order(given)[0] is goal
    table, student = difference_tables(given)
    assert [(one.name, one.is_best_control) for one in table.columns] == [
        ("RFT", True),
        ("SFT", False),
    ]
    assert (table.best_way, table.columns[1].best_way) == (
        "\u201cgreedy\u201d",
        "\u201cthink first\u201d",
    )
    assert [
        (part, [(way, is_goal) for way, is_goal, _ in rows]) for part, rows in table.slices
    ] == [
        ("hard", [("best way of each", True), ("greedy", False)]),
        ("easy", [("best way of each", False), ("greedy", False)]),
    ]
    _, rows = table.slices[1]
    lost = Gap("\u221210.0", "\u221215.0 to \u22125.0", "worse")
    won = Gap("+10.0", "+5.0 to +15.0", "better")
    assert [cells for _, _, cells in rows] == [(None, won), (lost, won)]
    assert (student.ours, student.best_way) == ("Lite", "")
