"""Rewriting the programs of A::B, a system of four tokens and four rules."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from ziphius.tasks.gym import Entry, GymTask
from ziphius.tasks.task import Problem

_RULES: Mapping[tuple[str, str], list[str]] = {
    ("A#", "#A"): [],
    ("A#", "#B"): ["#B", "A#"],
    ("B#", "#A"): ["#A", "B#"],
    ("B#", "#B"): [],
}


class AB(GymTask):
    """`ab: B# A# #B`: neighbours that face each other vanish if equal, and change places if not."""

    name = "ab"
    settings: ClassVar = {1: {"length": 6}, 2: {"length": 7}, 3: {"length": 8}, 4: {"length": 10}}
    form = re.compile(r"[AB#]{2}( [AB#]{2}){0,99}")

    def facts(self, entry: Entry) -> dict[str, Any]:
        """Read the program, which stands nowhere but in the question, on a line of its own."""
        program = re.search(r"following program:\s*([AB# ]+)\n", entry["question"])
        assert program, entry["question"]
        return {**super().facts(entry), "program": program[1].split()}

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out programs of which nothing remains."""
        return bool(facts["answer"])

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the program."""
        return f"ab: {' '.join(facts['program'])}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the program; a renaming of A and B makes no other one."""
        program = " ".join(facts["program"])
        return min(program, program.translate(str.maketrans("AB", "BA")))

    def solve(self, problem: Problem) -> str:
        """Rewrite the first pair that can be, again and again."""
        program, lines = list(problem.facts["program"]), []
        while (i := _first_pair(program)) is not None:
            program[i : i + 2] = _RULES[program[i], program[i + 1]]
            lines.append(f"={' '.join(program)}")
        return "\n".join(lines or [f"={' '.join(program)}"])


def _first_pair(program: list[str]) -> int | None:
    return next((i for i, pair in enumerate(pairwise(program)) if pair in _RULES), None)
