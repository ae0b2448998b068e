"""Every family at every level: steps that end in a correct answer, and answers that are wrong."""

import pytest

from ziphius.tasks import TASKS, Problem, Task, get_task
from ziphius.tasks.search import SearchTask

COUNT = 200
LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]
COMPUTED = [(name, level) for name, level in LEVELS if not isinstance(TASKS[name], SearchTask)]
"""With one answer, in which the steps end; of a search see `test_search.py`."""
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


def result(task: Task, problem: Problem) -> str:
    """Return what the last line of a solution ends in."""
    return task.solve(problem).splitlines()[-1].rpartition("=")[2]


@pytest.mark.parametrize(("name", "level"), COMPUTED)
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
        if (name, level) in COMPUTED:
            others = {other.answer for other in problems} - {problem.answer}
            assert [text for text in others if task.verify(problem, text)] == []
        # Longer by a character, cut short, turned round, or with a word around it.
        for text in (problem.answer + "1", f"answer {problem.answer}", f"{problem.answer}."):
            assert not task.verify(problem, text), (problem, text)
        if not problem.answer.startswith("0."):  # .5 is 0.5
            assert not task.verify(problem, problem.answer[1:])
        assert not task.verify(problem, task.solve(problem) + "\n0")
    assert [text and text[:20] for text in WRONG if task.verify(problems[0], text)] == []


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
    problem = Problem(task=name, level=1, question="", answer="", content="", facts=facts)
    assert get_task(name).solve(problem) == steps
