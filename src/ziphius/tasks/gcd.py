"""The greatest common divisor, by Euclid's steps."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem


def euclid(a: int, b: int) -> tuple[list[str], int]:
    """Return the steps `48=1*36+12`, `36=3*12+0` and the divisor, for a >= b > 0."""
    steps = []
    while b:
        steps.append(f"{a}={a // b}*{b}+{a % b}")
        a, b = b, a % b
    return steps, a


class Gcd(GymTask):
    """`gcd(48,36)=?`, the larger number first."""

    name = "gcd"
    settings: ClassVar = {
        1: {"min_value": 2, "max_value": 60},
        2: {"min_value": 10, "max_value": 200},
        3: {"min_value": 50, "max_value": 1_000},
        4: {"min_numbers": 3, "max_numbers": 3, "min_value": 10, "max_value": 200},
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the numbers, the larger one first."""
        return f"gcd({','.join(map(str, sorted(facts['numbers'], reverse=True)))})=?"

    def solve(self, problem: Problem) -> str:
        """Divide with remainder until none is left, one number after the other."""
        first, *rest = sorted(problem.facts["numbers"], reverse=True)
        steps = []
        for number in rest:
            more, first = euclid(max(first, number), min(first, number))
            steps += more
        return "\n".join([*steps, f"gcd={first}"])
