"""Expressions with brackets, one operation at a time."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.canonical import canonical
from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem

_TOKEN = re.compile(r"[0-9]+|[-+*()]")


class BasicArithmetic(GymTask):
    """`3*(2-7)=?`.

    Without division, which the family rounds down, and always with brackets allowed: without them
    it computes its answers from left to right, against the precedence that its text has.
    """

    name = "basic_arithmetic"
    settings: ClassVar = {
        level: {
            "min_terms": terms,
            "max_terms": terms,
            "min_digits": 1,
            "max_digits": 1,
            "operators": ("+", "-", "*"),
            "allow_negation": False,
            "whitespace": "no_space",
        }
        for level, terms in {1: 3, 2: 4, 3: 5, 4: 6}.items()
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the expression."""
        return f"{facts['expression']}=?"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the expression in canonical form."""
        return canonical(facts["expression"])

    def solve(self, problem: Problem) -> str:
        """Compute brackets first, then products, then sums, a line for each operation."""
        lines: list[str] = []
        tokens = _TOKEN.findall(problem.facts["expression"])[::-1]
        _sum(tokens, lines)
        assert not tokens, problem.question
        return "\n".join(lines)


def _sum(tokens: list[str], lines: list[str]) -> int:
    """Compute from the end of `tokens`, which holds the expression backwards."""
    value = _product(tokens, lines)
    while tokens and tokens[-1] in "+-":
        sign, other = tokens.pop(), _product(tokens, lines)
        value = _noted(value, sign, other, value + other if sign == "+" else value - other, lines)
    return value


def _product(tokens: list[str], lines: list[str]) -> int:
    value = _number(tokens, lines)
    while tokens and tokens[-1] == "*":
        tokens.pop()
        other = _number(tokens, lines)
        value = _noted(value, "*", other, value * other, lines)
    return value


def _number(tokens: list[str], lines: list[str]) -> int:
    token = tokens.pop()
    if token == "-":
        return -int(tokens.pop())
    if token == "(":
        value = _sum(tokens, lines)
        assert tokens.pop() == ")"
        return value
    return int(token)


def _noted(a: int, sign: str, b: int, result: int, lines: list[str]) -> int:
    lines.append(f"{a}{sign}{b}={result}")
    return result
