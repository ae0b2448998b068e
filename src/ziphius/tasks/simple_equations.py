"""Linear equations with one unknown."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem

_TERM = re.compile(r"([-+]?)(?:(\d+)\*)?(\d+|[a-z])")


class SimpleEquations(GymTask):
    """`2*x+3=19`; the unknown is always called x."""

    name = "simple_equations"
    settings: ClassVar = {
        1: {
            "max_terms": 2,
            "max_value": 50,
            "operators": ("+", "-"),
            "operators_weights": (0.5, 0.5),
        },
        2: {"max_terms": 2, "max_value": 12, "operators_weights": (0.5, 0.5, 0.0)},
        3: {"min_terms": 3, "max_terms": 3, "max_value": 12},
        4: {"min_terms": 3, "max_terms": 4, "max_value": 30},
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the equation."""
        return re.sub(r"[a-z]", "x", facts["equation"]).replace(" ", "") + ", x=?"

    def solve(self, problem: Problem) -> str:
        """Bring the number to the right, then divide by the factor of x."""
        left, right = problem.facts["equation"].replace(" ", "").split("=")
        factor = constant = 0
        for sign, times, term in _TERM.findall(left):
            value = int(sign + (times or "1")) * (int(term) if term.isdigit() else 1)
            if term.isdigit():
                constant += value
            else:
                factor = value
        name = {1: "x", -1: "-x"}.get(factor, f"{factor}*x")
        rest, lines = int(right) - constant, []
        if constant:
            lines.append(f"{name}={right}{-constant:+}={rest}")
        if factor != 1:
            lines.append(f"x={rest}/{factor}={rest // factor}")
        return "\n".join(lines)
