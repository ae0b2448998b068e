"""Every family at every level: which problems it gives."""

import random
import subprocess
import sys

import pytest

from ziphius.core.errors import MissingExtraError
from ziphius.tasks import SPLITS, TASKS, get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.gym import GymTask
from ziphius.tasks.search import SearchTask

LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]
FIRST = {
    "ab": ["ab: A# #A #B #B #A #A", "ab: #A A# #B #A B# B#"],
    "base_conversion": ["1121 base 3 to 2", "1010 base 4 to 5"],
    "basic_arithmetic": ["-2+3+-4=?", "(6-4)*-3=?"],
    "chain_sum": ["3-6+9-9=?", "2+3+1=?"],
    "count_bits": ["1-bits of 1097", "1-bits of 1067"],
    "decimal_chain_sum": ["8.5-7.2=?", "1.4+4.1=?"],
    "fraction_simplification": ["reduce 30/81", "reduce 32/40"],
    "gcd": ["gcd(65,40)=?", "gcd(78,23)=?"],
    "lcm": ["lcm(34,4)=?", "lcm(27,27)=?"],
    "leg_counting": ["legs: 3 bee, 8 cow", "legs: 6 wasp"],
    "letter_counting": ["count e: e-n-t-r-e-a-t-i-n-g", "count e: t-a-k-e-s"],
    "prime_factorization": ["factor 781", "factor 161"],
    "products": ["9*8*8*7=?", "8*5*3*2*2=?"],
    "simple_equations": ["x-12=12, x=?", "x+12=60, x=?"],
    "simple_geometry": ["angles 64,43,?", "angles 118,48,?"],
    "spell_backward": ["reverse z-e-k-e", "reverse a-n-d-e"],
}


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_no_question_is_in_two_splits_or_twice_in_one(name: str, level: int) -> None:
    task = get_task(name)
    questions = [
        problem.question for split in SPLITS for problem in task.problems(split, level, 25, seed=2)
    ]
    assert len(set(questions)) == 75


@pytest.mark.parametrize("name", TASKS)
def test_problems_hang_on_the_seed_alone_and_nothing_is_printed(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    task = get_task(name)
    random.seed(1)
    first = task.problems("validation", 2, 20, seed=5)
    random.seed(2)
    assert task.problems("validation", 2, 10, seed=5) == first[:10]
    assert task.problems("validation", 2, 20, seed=6) != first
    assert len({problem.key for problem in first}) == 20
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [n for n, t in TASKS.items() if not isinstance(t, SearchTask)])
def test_a_seed_keeps_its_problems(name: str) -> None:
    """Files of demonstrations and figures of old runs rely on it."""
    assert [problem.question for problem in get_task(name).problems("train", 1, 2)] == FIRST[name]


def test_a_level_that_runs_out_says_so() -> None:
    with pytest.raises(TaskError, match=r"about \d+ different problems of level 1 .* test, not"):
        get_task("fraction_simplification").problems("test", 1, 10_000)
    with pytest.raises(TaskError, match="gcd has no level 9; it has 1, 2, 3, 4"):
        get_task("gcd").problems("train", 9, 1)


def test_the_package_is_imported_when_the_first_problem_is_drawn() -> None:
    code = "import sys, ziphius.tasks; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ziphius\[tasks\]'"):
        get_task("gcd").problems("train", 1, 1)


def test_twins_are_asked_alike() -> None:
    gcd = TASKS["gcd"]
    assert isinstance(gcd, GymTask)
    assert gcd.ask({"numbers": [36, 48]}) == gcd.ask({"numbers": [48, 36]}) == "gcd(48,36)=?"


@pytest.mark.parametrize(
    ("name", "facts", "is_wanted"),
    [
        ("simple_geometry", {"missing_angle_rounded": 179}, True),
        ("simple_geometry", {"missing_angle_rounded": 180}, False),  # no longer convex
        ("letter_counting", {"span": ["Year", "of"]}, True),
        ("letter_counting", {"span": ["Year", "2889"]}, False),
        ("prime_factorization", {"factors": [2, 97]}, True),
        ("prime_factorization", {"factors": [97]}, False),
        ("prime_factorization", {"factors": [2, 101]}, False),
        ("products", {"expression": "3 * 7"}, True),
        ("products", {"expression": "3 * 0"}, False),
        ("simple_equations", {"equation": "2*x = 8"}, True),
        ("simple_equations", {"equation": "x = 8"}, False),
        ("simple_equations", {"equation": "7 = 7"}, False),
        ("ab", {"answer": "A#"}, True),
        ("ab", {"answer": ""}, False),
    ],
)
def test_which_problems_are_asked(name: str, facts: dict[str, object], is_wanted: bool) -> None:
    task = get_task(name)
    assert isinstance(task, GymTask)
    assert task.is_wanted(facts) is is_wanted
