"""Sums and differences of several numbers, by running totals."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import DECIMAL, GymTask
from ziphius.tasks.task import Problem


class ChainSum(GymTask):
    """`4-1+7=?`: add and subtract from left to right."""

    name = "chain_sum"
    settings: ClassVar = {
        1: {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
        2: {"min_terms": 5, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        3: {"min_terms": 7, "max_terms": 9, "min_digits": 1, "max_digits": 1},
        4: {"min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 2},
        5: {"min_terms": 5, "max_terms": 6, "min_digits": 2, "max_digits": 3},
    }
    form = DECIMAL

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the sum."""
        return str(facts["expression"]).replace(" ", "") + "=?"

    def solve(self, problem: Problem) -> str:
        """Take one term at a time, each line going on from the total above: `4-1=3`, `+7=10`."""
        first, *rest = str(problem.facts["expression"]).split()
        total, steps = int(first), []
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            total += int(sign + term)
            steps.append(f"{sign}{term}={total}")
        return first + "\n".join(steps)
