"""Greatest common divisors and least common multiples, by Euclid's steps."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.steps import euclid, multiply
from ziphius.tasks.task import Problem


class Gcd(GymTask):
    """`gcd(48,36)=?`, the larger number first."""

    name = "gcd"
    settings: ClassVar = {
        1: {"min_value": 2, "max_value": 80},
        2: {"min_value": 10, "max_value": 200},
        3: {"min_value": 50, "max_value": 1_000},
        4: {"min_numbers": 3, "max_numbers": 3, "min_value": 10, "max_value": 200},
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the numbers, the larger one first."""
        return f"{self.name}({','.join(map(str, _falling(facts)))})=?"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the numbers, the smallest one first."""
        return ",".join(map(str, sorted(facts["numbers"])))

    def solve(self, problem: Problem) -> str:
        """Divide with remainder until none is left, one number after the other."""
        divisor, *rest = _falling(problem.facts)
        lines = []
        for number in rest:
            more, divisor = euclid(max(divisor, number), min(divisor, number))
            lines += more
        return "\n".join([*lines, f"gcd={divisor}"])


class Lcm(Gcd):
    """`lcm(6,4)=?`, the larger number first."""

    name = "lcm"
    settings: ClassVar = {
        1: {"min_value": 2, "max_value": 60},
        2: {"min_value": 10, "max_value": 100},
        3: {"min_value": 50, "max_value": 400},
    }

    def solve(self, problem: Problem) -> str:
        """Divide one number by the greatest common divisor and multiply by the other."""
        a, b = _falling(problem.facts)
        lines, divisor = euclid(a, b)
        rest = b // divisor
        return "\n".join([*lines, f"{b}/{divisor}={rest}", *multiply(a, rest)])


def _falling(facts: Mapping[str, Any]) -> list[int]:
    return sorted(facts["numbers"], reverse=True)
