"""A task whose problems are easy to write down by hand."""

import pytest

from ziphius.tasks import TASKS, Problem, Split, Task


class Echo(Task):
    """Say the word that was asked for."""

    name = "echo"
    levels = (1,)

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        return [echo(f"{split}{seed + number}") for number in range(count)]

    def verify(self, problem: Problem, answer: str | None) -> bool:
        return answer == problem.answer

    def solve(self, problem: Problem) -> str:
        return f"= {problem.answer}"


def echo(word: str) -> Problem:
    """Ask for a word."""
    question = f"Say {word}"
    return Problem(task="echo", level=1, question=question, answer=word, content=question, facts={})


def add_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the task into the table for one test."""
    monkeypatch.setitem(TASKS, "echo", Echo())
