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

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out what has no x, and what says it outright."""
        factor, constant, _ = _parts(facts)
        return factor != 0 and (factor, constant) != (1, 0)

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the equation."""
        return re.sub(r"[a-z]", "x", facts["equation"]).replace(" ", "") + ", x=?"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the factor of x and both numbers on one side, whatever the sides and the sign."""
        factor, constant, result = _parts(facts)
        sign = -1 if factor < 0 else 1
        first, second = sorted((sign * constant, -sign * result))
        return f"{sign * factor}*x{first:+}{second:+}"

    def solve(self, problem: Problem) -> str:
        """Bring the number to the right, then divide by the factor of x."""
        factor, constant, result = _parts(problem.facts)
        name = {1: "x", -1: "-x"}.get(factor, f"{factor}*x")
        rest, lines = result - constant, []
        if constant:
            lines.append(f"{name}={result}{-constant:+}={rest}")
        if factor != 1:
            lines.append(f"x={rest}/{factor}={rest // factor}")
        return "\n".join(lines)


def _parts(facts: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return factor, constant and result of `factor*x + constant = result`."""
    left, right = facts["equation"].replace(" ", "").split("=")
    factor = constant = 0
    for sign, times, term in _TERM.findall(left):
        value = int(sign + (times or "1")) * (int(term) if term.isdigit() else 1)
        if term.isdigit():
            constant += value
        else:
            factor = value
    return factor, constant, int(right)
