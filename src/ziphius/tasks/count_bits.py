"""Ones in the binary form of a number, by halving."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem


class CountBits(GymTask):
    """`1-bits of 13`."""

    name = "count_bits"
    settings: ClassVar = {
        1: {"min_n": 2, "max_n": 3_000},
        2: {"min_n": 1_000, "max_n": 6_000},
        3: {"min_n": 5_000, "max_n": 100_000},
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the number."""
        return f"1-bits of {facts['number']}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the number."""
        return str(facts["number"])

    def solve(self, problem: Problem) -> str:
        """Halve downwards; behind each number stands how many odd ones there were."""
        number, count, lines = problem.facts["number"], 0, []
        while number:
            count += number % 2
            lines.append(f"{number}:{count}")
            number //= 2
        return "\n".join([*lines, f"bits={count}"])
