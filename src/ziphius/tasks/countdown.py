"""Countdown: reach a target from three numbers, each used once, with + - and *."""

import ast
import itertools
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ziphius.tasks.search import SearchTask

MOST_STEPS = 16
"""Of a demonstration."""
_FORM = re.compile(r"[0-9()+* -]{1,40}")
"""Characters of an expression; whether they make one, Python's parser says."""
_LARGEST, _HIGHEST = 20, 99
_WAYS = {1: (3, 99), 2: (1, 2)}
"""Fewest and most second steps that arrive, by level."""
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@dataclass(frozen=True, order=True)
class _Term:
    value: int
    expression: str
    step: str = ""


class Countdown(SearchTask):
    """`make 20 from 4 8 3`; an answer is `(8-3)*4`, with every number once."""

    name = "countdown"
    levels = tuple(_WAYS)

    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        """Draw three numbers, and a target that they reach in as many ways as the level wants."""
        terms = [_Term(n, str(n)) for n in (random.randint(1, _LARGEST) for _ in range(3))]
        ends = [end.value for first, rest in _steps(terms) for end, _ in _steps([first, *rest])]
        fewest, most = _WAYS[level]
        ways = Counter(ends)
        targets = sorted(n for n in ways if n >= 10 and fewest <= ways[n] <= most)
        if not targets:
            return None
        return {"numbers": [term.value for term in terms], "target": random.choice(targets)}

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show target and numbers."""
        return f"make {facts['target']} from {' '.join(map(str, facts['numbers']))}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Name the numbers in any order, and the target."""
        return f"{facts['target']} from {sorted(facts['numbers'])}"

    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        """Try first steps in random order, and after each one all second steps."""
        trace: list[str] = []
        for first, rest in _shuffled([_Term(n, str(n)) for n in facts["numbers"]], random):
            trace.append(first.step)
            for end, _ in _shuffled([first, *rest], random):
                trace.append(end.step)
                if len(trace) > MOST_STEPS:
                    return None
                if end.value == facts["target"]:
                    return "\n".join(trace), end.expression
        raise AssertionError(f"{facts} cannot be reached")

    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        """Compute the expression, which has every number once."""
        if value_of(answer) != facts["target"]:
            return False
        numbers = sorted(int(digits) for digits in re.findall(r"[0-9]+", answer))
        return numbers == sorted(facts["numbers"])


def value_of(expression: str) -> int | None:
    """Compute sums, differences and products of whole numbers; None for anything else.

    An expression of 40 characters at most, so that no parser and no product meets more.
    """
    if not _FORM.fullmatch(expression):
        return None

    def visit(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return int(_OPERATORS[type(node.op)](visit(node.left), visit(node.right)))
        raise ValueError

    try:
        return visit(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _steps(terms: Sequence[_Term]) -> Iterator[tuple[_Term, list[_Term]]]:
    """Join any two terms in every way that stays in range; with it, the terms that are left."""
    for pair in itertools.combinations(range(len(terms)), 2):
        a, b = sorted((terms[place] for place in pair), key=lambda t: t.value, reverse=True)
        rest = [term for place, term in enumerate(terms) if place not in pair]
        for sign, value in (
            ("+", a.value + b.value),
            ("*", a.value * b.value),
            ("-", a.value - b.value),
        ):
            if 0 < value <= _HIGHEST:
                joined = f"{_bracketed(a)}{sign}{_bracketed(b)}"
                yield _Term(value, joined, f"{a.value}{sign}{b.value}={value}"), rest


def _bracketed(term: _Term) -> str:
    """Write a term as an operand: whatever was joined before stands in brackets."""
    return term.expression if term.expression.isdigit() else f"({term.expression})"


def _shuffled(terms: Sequence[_Term], random: Random) -> list[tuple[_Term, list[_Term]]]:
    found = list(_steps(terms))
    random.shuffle(found)
    return found
