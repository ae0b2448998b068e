from dataclasses import replace

import pytest

from ziphius.tasks import SPLITS, TASKS, Problem, get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.task import LONGEST_ANSWER, readable, split_of


def test_an_unknown_task_is_told_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"'sums'; known are .*gcd"):
        get_task("sums")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_known_by_its_name(name: str) -> None:
    assert get_task(name).name == name
    assert get_task(name).levels[0] == 1


def test_a_problem_is_known_by_task_and_question() -> None:
    facts = {"numbers": [4, 6]}
    problem = Problem(
        task="gcd", level=1, question="gcd(6,4)=?", answer="2", content="4,6", facts=facts
    )
    assert problem.key == replace(problem, level=2, answer="", content="", facts={}).key
    assert problem.key != replace(problem, task="lcm").key
    assert len({problem, replace(problem, facts={"numbers": [4, 6]})}) == 1


def test_splits_take_their_shares_of_contents() -> None:
    splits = [split_of(f"+{i}+{i}") for i in range(20_000)]
    shares = {split: splits.count(split) / len(splits) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.01)


def test_the_split_of_a_content_never_changes() -> None:
    # Stored figures and training files rely on it.
    splits = [split_of(f"2,{i}") for i in range(4, 12)]
    assert splits == [*["train"] * 2, "validation", *["train"] * 4, "test"]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (" 12\n", "12"),
        ("a, b", "a, b"),
        (None, None),
        ("", None),
        (" \n", None),
        ("1\n2", None),
        ("\u0661\u0662", None),
        ("1\x002", None),
        ("1" * LONGEST_ANSWER, "1" * LONGEST_ANSWER),
        ("1" * (LONGEST_ANSWER + 1), None),
        (" " * 10_000_000, None),
    ],
)
def test_what_can_be_read_as_an_answer(answer: str | None, read: str | None) -> None:
    assert readable(answer) == read
