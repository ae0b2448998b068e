"""Every family at every level: problems, steps, and answers that are wrong."""

import random
import subprocess
import sys

import pytest

from ziphius.core.errors import MissingExtraError
from ziphius.tasks import SPLITS, TASKS, Problem, Task, get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import split_of

COUNT = 200
LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]
WRONG = [
    None,
    "",
    "junk",
    "nan",
    "inf",
    "None",
    "1e999999999",
    "9" * 999,
    "9" * 10_000_000,
    "[" * 900,
    "(" * 1_000_000,
    "\u0661",
    "\u00bd",
    "\ud800",
    "1\n2",
    "1_000",
    "1/0",
    "0/0",
    "#",
    "*",
    "2**",
    "{}",
    "\x00",
    "__import__('os').getcwd()",
]

FIRST = {
    "ab": ["ab: A# #A #B #B #A #A", "ab: #A A# #B #A B# B#"],
    "base_conversion": ["101 base 3 to 5", "11 base 6 to 2"],
    "basic_arithmetic": ["-2+3+-4=?", "(6-4)*-3=?"],
    "chain_sum": ["3-6+9-9=?", "9+4+9-8=?"],
    "count_bits": ["1-bits of 1097", "1-bits of 1067"],
    "decimal_chain_sum": ["8.5-7.2=?", "1.4+4.1=?"],
    "fraction_simplification": ["reduce 30/81", "reduce 32/40"],
    "gcd": ["gcd(65,40)=?", "gcd(78,23)=?"],
    "lcm": ["lcm(34,4)=?", "lcm(27,27)=?"],
    "leg_counting": ["legs: 3 bee, 8 cow", "legs: 6 wasp"],
    "letter_counting": ["count t: p-o-s-s-i-b-i-l-i-t-y", "count v: l-o-v-e-l-y"],
    "prime_factorization": ["factor 781", "factor 161"],
    "products": ["9*8*8*7=?", "8*5*3*2*2=?"],
    "simple_equations": ["x-12=12, x=?", "x+12=60, x=?"],
    "simple_geometry": ["angles 83,79,?", "angles 64,43,?"],
    "spell_backward": ["reverse z-e-k-e", "reverse a-n-d-e"],
}


def result(task: Task, problem: Problem) -> str:
    """Return what the last line of a solution ends in."""
    return task.solve(problem).splitlines()[-1].rpartition("=")[2]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_steps_end_in_an_answer_that_is_correct(name: str, level: int) -> None:
    task = get_task(name)
    for problem in task.problems("train", level, COUNT, seed=1):
        assert (problem.task, problem.level) == (name, level)
        assert task.verify(problem, problem.answer), problem
        assert task.verify(problem, f" {result(task, problem)}\n"), problem
        assert task.solve(problem).isascii()
        assert "=" in task.solve(problem).splitlines()[-1]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_wrong_answers_are_wrong(name: str, level: int) -> None:
    task = get_task(name)
    problems = task.problems("train", level, 30)
    for problem in problems:
        others = {other.answer for other in problems} - {problem.answer}
        assert [text for text in others if task.verify(problem, text)] == []
        # Longer by a character, cut short, turned round, or with a word around it.
        for text in (problem.answer + "1", f"answer {problem.answer}", f"{problem.answer}."):
            assert not task.verify(problem, text), (problem, text)
        assert not task.verify(problem, problem.answer[1:])
        assert not task.verify(problem, task.solve(problem) + "\n0")
    assert [text and text[:20] for text in WRONG if task.verify(problems[0], text)] == []


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_no_question_is_in_two_splits_or_twice_in_one(name: str, level: int) -> None:
    task = get_task(name)
    for split in SPLITS:
        questions = [problem.question for problem in task.problems(split, level, 25, seed=2)]
        assert len(set(questions)) == 25
        assert {split_of(question) for question in questions} == {split}


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


@pytest.mark.parametrize("name", TASKS)
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
        ("ab", {"answer": "A#"}, True),
        ("ab", {"answer": ""}, False),
    ],
)
def test_which_problems_are_asked(name: str, facts: dict[str, object], is_wanted: bool) -> None:
    task = get_task(name)
    assert isinstance(task, GymTask)
    assert task.is_wanted(facts) is is_wanted


@pytest.mark.parametrize(
    ("name", "facts", "steps"),
    [
        ("chain_sum", {"expression": "15 - 69 + 7"}, "15-60=-45\n-9=-54\n+7=-47"),
        ("decimal_chain_sum", {"expression": "4.5 - 1.25"}, "4.5-1=3.5\n-0.2=3.3\n-0.05=3.25"),
        ("chain_sum", {"expression": "3 - 0 + 10"}, "3-0=3\n+10=13"),
        ("gcd", {"numbers": [36, 48]}, "48=1*36+12\n36=3*12+0\ngcd=12"),
        ("gcd", {"numbers": [4, 6, 9]}, "9=1*6+3\n6=2*3+0\n4=1*3+1\n3=3*1+0\ngcd=1"),
        ("lcm", {"numbers": [4, 6]}, "6=1*4+2\n4=2*2+0\n4/2=2\n6*2=12"),
        ("products", {"expression": "20 * 47"}, "47*20=940"),
        ("products", {"expression": "13 * 12"}, "13*10=130\n13*2=26\n130+20=150\n+6=156"),
        ("basic_arithmetic", {"expression": "2-3*(4--1)"}, "4--1=5\n3*5=15\n2-15=-13"),
        ("count_bits", {"number": 6}, "6:0\n3:1\n1:2\nbits=2"),
        ("letter_counting", {"target_letter": "e", "span": ["We", "see"]}, "w-e1\ns-e2-e3\ne=3"),
        ("simple_equations", {"equation": "3 - 2*y = -5"}, "-2*x=-5-3=-8\nx=-8/-2=4"),
        ("simple_equations", {"equation": "q + 2 = 5"}, "x=5-2=3"),
        ("ab", {"program": ["B#", "A#", "#B"]}, "=B# #B A#\n=A#"),
        ("leg_counting", {"animals": {"dog": 2, "bee": 1}}, "bee 1*6=6\ndog 2*4=8\n6+8=14"),
        (
            "simple_geometry",
            {"n_sides": 3, "known_angles": [60.0, 70.0]},
            "1*180=180\n180-70=110\n-60=50",
        ),
        (
            "base_conversion",
            {"source_repr": "1a", "source_base": 11, "target_base": 2},
            "1*11+10=21\n21=10*2+1\n10=5*2+0\n5=2*2+1\n2=1*2+0\n1=0*2+1\nbase 2=10101",
        ),
        (
            "fraction_simplification",
            {"numerator": 84, "denominator": 126},
            "126=1*84+42\n84=2*42+0\n84/42=2\n126/42=3\n84/126=2/3",
        ),
    ],
)
def test_steps_by_hand(name: str, facts: dict[str, object], steps: str) -> None:
    assert get_task(name).solve(Problem(name, 1, "", "", facts)) == steps
