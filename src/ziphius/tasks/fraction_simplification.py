"""Fractions in lowest terms."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.steps import euclid
from ziphius.tasks.task import Problem


class FractionSimplification(GymTask):
    """`reduce 84/126`."""

    name = "fraction_simplification"
    settings: ClassVar = {
        1: {"max_value": 30, "min_factor": 2, "max_factor": 9, "styles": ("plain",)},
        2: {"max_value": 60, "min_factor": 2, "max_factor": 20, "styles": ("plain",)},
        3: {"max_value": 200, "min_factor": 2, "max_factor": 50, "styles": ("plain",)},
    }
    form = re.compile(r"[0-9]{1,20}/[0-9]{1,20}")

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the fraction."""
        return f"reduce {facts['numerator']}/{facts['denominator']}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return both numbers, the smaller one first."""
        return ",".join(map(str, sorted((facts["numerator"], facts["denominator"]))))

    def solve(self, problem: Problem) -> str:
        """Find the greatest common divisor, then divide both numbers by it."""
        a, b = problem.facts["numerator"], problem.facts["denominator"]
        lines, divisor = euclid(max(a, b), min(a, b))
        lines += [f"{number}/{divisor}={number // divisor}" for number in (a, b)]
        return "\n".join([*lines, f"{a}/{b}={a // divisor}/{b // divisor}"])
