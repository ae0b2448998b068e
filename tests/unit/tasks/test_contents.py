"""No content of one split is in another: what is practised is not what is measured."""

from itertools import combinations
from typing import Any

import pytest

from ziphius.tasks import SPLITS, TASKS, Problem, Split
from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import split_of

COUNTS: dict[Split, int] = {"train": 300, "validation": 60, "test": 60}
SEEDS = (3, 4)
WORDS = ("letter_counting", "spell_backward")


def contents(problem: Problem) -> set[str]:
    """Return what must not be in two splits; a text has it word by word."""
    return set(problem.content.split()) if problem.task in WORDS else {problem.content}


def drawn(name: str, split: Split) -> list[Problem]:
    """Draw from all levels with several seeds."""
    task = TASKS[name]
    return [
        problem
        for level in task.levels
        for seed in SEEDS
        for problem in task.problems(split, level, COUNTS[split], seed)
    ]


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_content_whatever_the_levels_and_seeds(name: str) -> None:
    found = {
        split: {one for problem in drawn(name, split) for one in contents(problem)}
        for split in SPLITS
    }
    assert min(map(len, found.values())) > 3
    for first, second in combinations(SPLITS, 2):
        assert not found[first] & found[second]
    for split in SPLITS:
        assert {split_of(content) for content in found[split]} == {split}


@pytest.mark.parametrize("name", TASKS)
def test_another_seed_has_other_problems_of_the_same_splits(name: str) -> None:
    for level in TASKS[name].levels:
        first, second = (
            {problem.key for problem in TASKS[name].problems("train", level, 60, seed)}
            for seed in SEEDS
        )
        assert len(first & second) < 30


@pytest.mark.parametrize(
    ("name", "facts", "twin"),
    [
        ("ab", {"program": ["A#", "#B"]}, {"program": ["B#", "#A"]}),
        (
            "base_conversion",
            {"source_repr": "101", "source_base": 2, "target_base": 3},
            {"source_repr": "5", "source_base": 7, "target_base": 6},
        ),
        ("basic_arithmetic", {"expression": "6-(4-3)*2"}, {"expression": "6+2*(3-4)"}),
        ("chain_sum", {"expression": "3 + 4 - 1"}, {"expression": "4 - 1 + 3"}),
        ("decimal_chain_sum", {"expression": "4.50 + 1.2"}, {"expression": "1.20 + 4.5"}),
        (
            "fraction_simplification",
            {"numerator": 84, "denominator": 126},
            {"numerator": 126, "denominator": 84},
        ),
        ("gcd", {"numbers": [36, 48, 4]}, {"numbers": [4, 48, 36]}),
        ("lcm", {"numbers": [36, 48]}, {"numbers": [48, 36]}),
        ("leg_counting", {"animals": {"dog": 2, "bee": 3}}, {"animals": {"ant": 3, "cat": 2}}),
        (
            "letter_counting",
            {"span": ["See", "a", "sea"], "target_letter": "e"},
            {"span": ["a", "sea", "see"], "target_letter": "s"},
        ),
        ("products", {"expression": "3 * 17"}, {"expression": "17 * 3"}),
        ("simple_equations", {"equation": "2*x + 3 = 19"}, {"equation": "3 + 2*q = 19"}),
        ("simple_equations", {"equation": "2*x + 3 = 19"}, {"equation": "-2*a - 3 = -19"}),
        ("simple_equations", {"equation": "2*x + 3 = 19"}, {"equation": "19 - 2*b = 3"}),
        ("simple_geometry", {"known_angles": [60.0, 70.0]}, {"known_angles": [70.0, 60.0]}),
        ("spell_backward", {"word": "Sun"}, {"word": "sun"}),
    ],
)
def test_twins_have_one_content(name: str, facts: dict[str, Any], twin: dict[str, Any]) -> None:
    task = TASKS[name]
    assert isinstance(task, GymTask)
    assert task.content(facts) == task.content(twin)


def test_families_that_share_what_is_to_be_known_share_its_split() -> None:
    """A word or a number that one family practises is not what another is measured on."""

    def content(name: str, **facts: object) -> str:
        task = TASKS[name]
        assert isinstance(task, GymTask)
        return task.content(facts)

    assert content("spell_backward", word="Sun") == content("letter_counting", span=["sun"])
    assert content("count_bits", number=5) == content("prime_factorization", number=5)
    assert content("gcd", numbers=[9, 6]) == content("lcm", numbers=[6, 9])
    assert content("products", expression="3 * 2") == content("basic_arithmetic", expression="2*3")


def test_every_word_of_many_is_of_the_split() -> None:
    """Half of a small split would have none of it, if spans came from the text as it stands."""
    task = TASKS["letter_counting"]
    for problem in task.problems("test", 4, 200):
        assert 5 <= len(problem.facts["span"]) <= 7
        assert {split_of(word.lower()) for word in problem.facts["span"]} == {"test"}
