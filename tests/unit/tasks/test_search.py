"""Families that are searched: honest traces, every right answer, no wrong one, one content a twin.

What is drawn may be drawn otherwise one day, so single problems are made here by hand.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import pytest

from ziphius.tasks import TASKS, Problem, coin_change, countdown, grid_path, subset_sum
from ziphius.tasks.countdown import value_of
from ziphius.tasks.errors import TaskError
from ziphius.tasks.search import SearchTask, take_away

FAMILIES = {name: task for name, task in TASKS.items() if isinstance(task, SearchTask)}
LEVELS = [(name, level) for name, task in FAMILIES.items() for level in task.levels]
GRID = np.array(list("abcdefghijklmnopqrstuvwxy")).reshape(5, 5)


def cell(name: str) -> tuple[int, int]:
    """Return where a letter stands in the grid."""
    [[x, y]] = np.argwhere(name == GRID).tolist()
    return x, y


def grid(start: str, goal: str, walls: str) -> dict[str, Any]:
    return {"start": cell(start), "goal": cell(goal), "walls": sorted(map(cell, walls))}


SUM = {"numbers": [3, 5, 8, 2, 9], "target": 16, "most": 3}
COINS = {"coins": [3, 5, 7, 12], "amount": 17}
WAY = grid("a", "m", "cgw")
"""Without c, g and w."""
MAKE = {"numbers": [4, 8, 3], "target": 20}
FACTS = {"subset_sum": SUM, "coin_change": COINS, "grid_path": WAY, "countdown": MAKE}


def problem(name: str, facts: Mapping[str, Any]) -> Problem:
    return Problem(task=name, level=1, question="", answer="", content="", facts=facts)


def assert_taken_away(target: int, trace: str, answer: str) -> list[list[int]]:
    """Compute every line anew; return its numbers, of the last line without a rest."""
    found = []
    for line in trace.split("\n"):
        assert re.fullmatch(r"(-\d+=\d+)*(-\d+)?", line)
        assert line
        rest, numbers = target, []
        for number, result in re.findall(r"-(\d+)(?:=(\d+))?", line):
            numbers.append(int(number))
            if result:
                assert int(result) == rest - int(number)
            else:
                assert int(number) > rest
            rest -= int(number)
        found.append(numbers)
        is_last = len(found) == len(trace.split("\n"))
        assert (rest == 0) == is_last
    assert "+".join(map(str, found[-1])) == answer
    return found


def assert_sums_are_taken_away(facts: Mapping[str, Any], trace: str, answer: str) -> None:
    for numbers in assert_taken_away(facts["target"], trace, answer):
        assert not Counter(numbers) - Counter(facts["numbers"])


def assert_coins_are_taken_away(facts: Mapping[str, Any], trace: str, answer: str) -> None:
    for coins in assert_taken_away(facts["amount"], trace, answer):
        assert set(coins) <= set(facts["coins"])


def assert_walked(facts: Mapping[str, Any], trace: str, answer: str) -> None:
    """Walk the trace: a step into a cell not seen before, or back to where it came from."""
    way: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []
    for place in map(cell, trace.split("-")):
        assert place not in facts["walls"]
        if len(way) > 1 and place == way[-2]:
            way.pop()
            continue
        if way:
            assert abs(place[0] - way[-1][0]) + abs(place[1] - way[-1][1]) == 1
        assert place not in seen
        way.append(place)
        seen.append(place)
    assert (way[0], way[-1]) == (facts["start"], facts["goal"])
    assert [str(GRID[place]) for place in way] == answer.split("-")


def assert_combined(facts: Mapping[str, Any], trace: str, answer: str) -> None:
    """Compute every line anew, from two of the numbers or from what a first step left."""
    first: list[
        list[int]
    ] = []  # what the step before may have left: 4-3 may be a first or a second
    for line in trace.split("\n"):
        match = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line)
        assert match, line
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        assert {"+": a + b, "-": a - b, "*": a * b}[match[2]] == result
        rest = Counter(facts["numbers"])
        rest.subtract((a, b))
        first = [left for left in first if sorted((a, b)) == left]
        if min(rest.values()) >= 0:
            first.append(sorted((result, *rest.elements())))
        assert first, line
    assert result == facts["target"]
    assert value_of(answer) == result


HONEST: dict[str, Callable[[Mapping[str, Any], str, str], None]] = {
    "coin_change": assert_coins_are_taken_away,
    "countdown": assert_combined,
    "grid_path": assert_walked,
    "subset_sum": assert_sums_are_taken_away,
}


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_demonstrations_are_honest_and_arrive(name: str, level: int) -> None:
    task = FAMILIES[name]
    problems = task.problems("train", level, 60, seed=1)
    for each in problems:
        assert (each.task, each.level) == (name, level)
        assert each.question == task.ask(each.facts)
        assert each.content == task.content(each.facts)
        assert task.verify(each, each.answer)
        HONEST[name](each.facts, task.solve(each), each.answer)
    assert len({each.content for each in problems}) == len({each.key for each in problems}) == 60


@pytest.mark.parametrize("name", FAMILIES)
def test_any_search_by_hand_is_honest_or_is_given_up(name: str) -> None:
    task, facts = FAMILIES[name], FACTS[name]
    found = [task.search(facts, Random(seed)) for seed in range(300)]
    arrived = [each for each in found if each]
    assert len(set(arrived)) > 10
    for trace, answer in arrived:
        HONEST[name](facts, trace, answer)
        assert task.verify(problem(name, facts), answer)


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_demonstrations_have_their_limit(name: str, level: int) -> None:
    limits: dict[str, Callable[[str], bool]] = {
        "coin_change": lambda trace: trace.count("\n") < coin_change.MOST_TRIES,
        "countdown": lambda trace: trace.count("\n") < countdown.MOST_STEPS,
        "grid_path": lambda trace: trace.count("-") < grid_path.MOST_CELLS,
        "subset_sum": lambda trace: trace.count("\n") < subset_sum.MOST_TRIES,
    }
    task = FAMILIES[name]
    traces = [task.solve(each) for each in task.problems("train", level, 60, seed=2)]
    assert all(map(limits[name], traces))
    assert max(map(len, traces)) < 200


@pytest.mark.parametrize("name", FAMILIES)
def test_a_problem_is_searched_alike_whatever_it_was_drawn_with(name: str) -> None:
    task = FAMILIES[name]
    some = task.problems("validation", 1, 5, seed=3)
    more = task.problems("validation", 1, 20, seed=3)
    assert more[:5] == some
    others = task.problems("validation", 1, 20, seed=4)
    assert not {each.key for each in more} >= {each.key for each in others}
    for each in more:
        again = problem(name, each.facts)
        assert task.solve(each) == task.solve(each)
        assert task.verify(again, each.answer)


def test_taking_away_ends_at_nothing_or_at_what_is_too_large() -> None:
    assert take_away(16, [5, 8, 3, 9]) == ("-5=11-8=3-3=0", [5, 8, 3])
    assert take_away(16, [9, 8, 3]) == ("-9=7-8", None)
    assert take_away(16, [5, 2]) == ("-5=11-2=9", None)
    assert take_away(7, [9]) == ("-9", None)


def test_a_walk_turns_back_where_there_is_no_way() -> None:
    facts = grid("c", "a", "fghij")
    found = {FAMILIES["grid_path"].search(facts, Random(seed)) for seed in range(50)}
    assert found == {("c-b-a", "c-b-a"), ("c-d-e-d-c-b-a", "c-b-a")}


def test_limits_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_path, "MOST_CELLS", 4)
    monkeypatch.setattr(countdown, "MOST_STEPS", 1)
    monkeypatch.setattr(subset_sum, "MOST_TRIES", 0)
    monkeypatch.setattr(coin_change, "MOST_TRIES", 0)
    for name, task in FAMILIES.items():
        assert [task.search(FACTS[name], Random(seed)) for seed in range(50)] == [None] * 50


WRONG = {
    "subset_sum": [
        *("8+8", "3+3+2+8", "2+5+9+8", "3+5+9", "7+9", "16", "14+2", "0+3+5+8", "24-8"),
        *("3+5+08", "3 + 5 + 8", "+3+5+8", "3+5+8+", "3++5+8", "3+5+8=16", "3+5+8+0"),
        *("-3+19", "3.0+5+8", "3+5+8x", "3,5,8", "3+5+8\n0", "3+5+\uff18", "\u0663+5+8"),
    ],
    "coin_change": [
        *("3+3+3+3+5", "5+7", "5+5+5", "12+7", "6+6+5", "10+7", "17", "12+05", "12+5+0"),
        *("12 + 5", "12+5+", "+12+5", "12+\u0665", "5*2+7", "12+5=17", "12-(-5)"),
    ],
    "grid_path": [
        *("a-b-g-l-m", "a-l-m", "a-g-m", "a-m", "a", "a-f-k-l", "f-k-l-m", "m-l-k-f-a"),
        *("a-a-f-k-l-m", "a-f-k-l-m-m", "a-f-k-l-m-", "-a-f-k-l-m", "afklm", "A-F-K-L-M"),
        *("a-f-k-l-z-m", "a-f-k-l-m.", "a - f - k - l - m", "a-z-m", "a-1-m", "a--m"),
        *("\u0430-f-k-l-m", "-".join("af" * 13 + "afklm")),  # a Cyrillic a; in circles
    ],
    "countdown": [
        *("4*8-3", "20", "5*4", "(8-3)*4*1", "(8-3)*4+0", "8+8+4", "(8-3)*4=20", "4*(8-3"),
        *("4(8-3)", "4*(8-3.0)", "4*(8--3)", "+4*(8-3)", "4*(8-03)", "(8-3)*4#", "8*3-4;"),
        *("4*(8-3),", "x:=4*(8-3)", "int('20')", "4\u00d7(8-3)", "4*(8-\uff13)", "2*2*(8-3)"),
    ],
}
EVERYWHERE = [
    *(None, "", " ", "-", "+", "\n", "none", "\ud800", "\x00", "()", "[]", "__import__('os')"),
    *("9" * 999, "9" * 10_000_000, "3+" * 5_000_000, "(" * 1_000_000, "a-f-" * 1_000_000),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_wrong_answer_is_correct(name: str) -> None:
    asked = problem(name, FACTS[name])
    answers = [*WRONG[name], *EVERYWHERE]
    assert [text and text[:30] for text in answers if FAMILIES[name].verify(asked, text)] == []


@pytest.mark.parametrize(
    ("name", "facts", "answers"),
    [
        ("subset_sum", SUM, ["3+5+8", "8+3+5", " 3+5+8\n", "5+2+9"]),
        ("coin_change", COINS, ["5+5+7", "7+5+5", "12+5"]),
        ("grid_path", WAY, ["a-f-k-l-m", "a-f-k-p-q-r-m", "a-b-a-f-k-l-m"]),
        ("countdown", MAKE, ["(8-3)*4", "4*(8-3)", "8*3-4", "( 8 - 3 ) * 4", "((8-3))*4"]),
        ("countdown", {"numbers": [12, 8, 3], "target": 23}, ["12+8+3", "3+12+8"]),
        ("countdown", {"numbers": [5, 5, 2], "target": 15}, ["5+5*2"]),
    ],
)
def test_every_right_answer_is_correct(
    name: str, facts: Mapping[str, Any], answers: list[str]
) -> None:
    for answer in answers:
        assert FAMILIES[name].verify(problem(name, facts), answer), answer


@pytest.mark.parametrize(
    ("name", "facts", "answer"),
    [
        ("subset_sum", {"numbers": [5, 5, 2], "target": 15, "most": 3}, "5+5+5"),
        ("grid_path", grid("e", "f", "xy"), "e-f"),  # neighbours by letter, not by place
        ("grid_path", grid("u", "w", "xy"), "u-{-w"),  # below the grid
        ("grid_path", grid("a", "c", "xy"), "a-`-c"),
        ("countdown", {"numbers": [12, 8, 3], "target": 23}, "1 2+8+3"),
        ("countdown", {"numbers": [2, 3], "target": 8}, "2**3"),
        ("countdown", {"numbers": [8, 3], "target": 2}, "8//3"),
        ("countdown", {"numbers": [5, 3], "target": -2}, "-5+3"),
    ],
)
def test_what_only_looks_right_is_wrong(name: str, facts: Mapping[str, Any], answer: str) -> None:
    assert not FAMILIES[name].verify(problem(name, facts), answer)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("3-5", -2),
        ("2 * (3 - 1)", 4),
        ("9-2-3", 4),
        ("9" * 40, int("9" * 40)),
    ],
)
def test_expressions_are_computed(expression: str, value: int) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("2**3", "-4", "+4", "4--3", "~4", "1.5", "1e3", "4/2", "4//2", "4%2", "1<<9", "4@2"),
        *("a", "print", "True", "None", "x:=4", "lambda:4", "4 if 4 else 4", "[4]", "(4,2)", "4,"),
        *("4(2)", "(4)(2)", "4[2]", "int('4')", "1_0", "0x10", "1j", "08", "1 2", "4#2", "4;"),
        *("", " ", "()", "(4", "4)", "+", "(1\n+2)", "4\n", "\x004", "\ud800", "\u0664", "4\u00b2"),
        *("1" * 41, "9" * 10_000_000, "(" * 1_000_000, "1+" * 1_000_000 + "1", "2*" * 999 + "2"),
    ],
)
def test_nothing_else_is_an_expression(expression: str) -> None:
    assert value_of(expression) is None


@pytest.mark.parametrize(
    ("name", "facts", "twin"),
    [
        ("subset_sum", SUM, SUM | {"numbers": [9, 8, 5, 3, 2]}),
        ("coin_change", COINS, COINS | {"coins": [12, 3, 7, 5]}),
        ("countdown", MAKE, MAKE | {"numbers": [3, 4, 8]}),
    ],
)
def test_order_makes_no_other_content(
    name: str, facts: dict[str, Any], twin: dict[str, Any]
) -> None:
    task = FAMILIES[name]
    total = next(iter({"target", "amount"} & facts.keys()))
    numbers = next(iter({"numbers", "coins"} & facts.keys()))
    assert task.content(facts) == task.content(twin)
    assert task.content(facts) != task.content(facts | {total: facts[total] + 1})
    assert task.content(facts) != task.content(facts | {numbers: [*facts[numbers][:-1], 6]})


def views(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn and mirror a grid with its walls, and walk it both ways."""
    picture = np.zeros((5, 5), dtype=int)
    for place in facts["walls"]:
        picture[place] = 1
    picture[facts["start"]], picture[facts["goal"]] = 2, 3
    found = []
    for turns in range(4):
        for view in (np.rot90(picture, turns), np.rot90(picture, turns).T):
            walls = [(int(x), int(y)) for x, y in np.argwhere(view == 1)]
            [start], [goal] = (
                [(int(x), int(y)) for x, y in np.argwhere(view == number)] for number in (2, 3)
            )
            found.append({"start": start, "goal": goal, "walls": walls})
            found.append({"start": goal, "goal": start, "walls": walls[::-1]})
    return found


def test_a_grid_that_is_turned_or_mirrored_or_walked_back_is_the_same() -> None:
    task = FAMILIES["grid_path"]
    for each in task.problems("test", 2, 20):
        twins = views(each.facts)
        assert len({str(twin) for twin in twins}) == 16
        assert {task.content(twin) for twin in twins} == {each.content}
    assert task.content(WAY) != task.content(grid("a", "m", "cgx"))
    assert task.content(WAY) != task.content(grid("a", "n", "cgw"))
    assert task.content(WAY) != task.content(grid("a", "e", "cgw"))


class Digits(SearchTask):
    """Name a digit: all that there is to draw is ten problems."""

    name = "digits"
    levels = (1,)

    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        digit = random.randrange(20)
        return {"digit": digit} if digit < 10 else None

    def ask(self, facts: Mapping[str, Any]) -> str:
        return f"say {facts['digit']}"

    def content(self, facts: Mapping[str, Any]) -> str:
        return f"digit {facts['digit']}"

    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        guess = random.randrange(10)
        return (f"{guess}?", str(guess)) if guess == facts["digit"] else None

    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        return answer == str(facts["digit"])


def test_every_problem_is_drawn_once_and_then_none_is_left() -> None:
    task = Digits()
    with pytest.raises(TaskError, match=r"digits has about \d+ different .* split train, not 11"):
        task.problems("train", 1, 11)
    count = 8
    found = [{each.key for each in task.problems("train", 1, count, seed)} for seed in range(3)]
    assert found[0] == found[1] == found[2]
    orders = {tuple(each.key for each in task.problems("train", 1, count, s)) for s in range(9)}
    assert len(orders) > 5
    for each in task.problems("train", 1, count):
        assert each.answer == str(each.facts["digit"])
        assert task.solve(each) == f"{each.answer}?"


def test_a_search_that_never_arrives_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "search", lambda self, facts, random: None)
    with pytest.raises(TaskError, match=r"digits: no search of 'say .' arrives"):
        Digits().problems("train", 1, 1)
