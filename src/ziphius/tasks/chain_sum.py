"""Sums and differences of several numbers, by running totals."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.canonical import canonical
from ziphius.tasks.gym import DECIMAL, GymTask
from ziphius.tasks.steps import add_up
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

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the signed terms, sorted."""
        return canonical(facts["expression"])

    def solve(self, problem: Problem) -> str:
        """Take one term at a time: `4-1=3`, `+7=10`."""
        first, *rest = str(problem.facts["expression"]).split()
        signed = [sign + term for sign, term in zip(rest[::2], rest[1::2], strict=True)]
        return "\n".join(add_up(first, signed)[0])


def _decimals(
    terms: tuple[int, int], digits: tuple[int, int], places: tuple[int, int]
) -> dict[str, int]:
    return {
        "min_terms": terms[0],
        "max_terms": terms[1],
        "min_digits": digits[0],
        "max_digits": digits[1],
        "min_decimal_places": places[0],
        "max_decimal_places": places[1],
    }


class DecimalChainSum(ChainSum):
    """`4.5-1.2=?`: the same with decimal places."""

    name = "decimal_chain_sum"
    settings: ClassVar = {
        1: _decimals(terms=(2, 2), digits=(1, 1), places=(1, 1)),
        2: _decimals(terms=(3, 3), digits=(1, 1), places=(1, 1)),
        3: _decimals(terms=(3, 4), digits=(1, 1), places=(1, 2)),
        4: _decimals(terms=(3, 5), digits=(1, 2), places=(1, 3)),
    }
