"""Products, digit by digit of the second factor."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.canonical import canonical
from ziphius.tasks.gym import DECIMAL, GymTask
from ziphius.tasks.steps import multiply
from ziphius.tasks.task import Problem


class Products(GymTask):
    """`47*23=?`, the larger factor first."""

    name = "products"
    settings: ClassVar = {
        1: {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1},
        2: {"min_digits": 2, "max_digits": 2},
        3: {"min_digits": 3, "max_digits": 3},
    }
    form = DECIMAL

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out products that are zero at a glance."""
        return 0 not in _falling(facts)

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the factors."""
        return "*".join(map(str, _falling(facts))) + "=?"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the factors, sorted."""
        return canonical(facts["expression"])

    def solve(self, problem: Problem) -> str:
        """Take one factor after the other, and of each one digit at a time."""
        product, *rest = _falling(problem.facts)
        lines = []
        for factor in rest:
            lines += multiply(product, factor)
            product *= factor
        return "\n".join(lines)


def _falling(facts: Mapping[str, Any]) -> list[int]:
    return sorted(map(int, str(facts["expression"]).split(" * ")), reverse=True)
