"""Expressions in canonical form: what is computed, however it is written down."""

import re
from collections.abc import Iterable
from decimal import Decimal

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[-+*()]")

_Term = tuple[tuple[str, ...], int]
"""The factors of a product, sorted, and its sign."""

_ONE: list[_Term] = [((), 1)]


def canonical(expression: str) -> str:
    """Return an expression of `+`, `-`, `*` and brackets with all that is one computation alike.

    Terms and factors are sorted and brackets that change nothing are taken away: `3+4-1`, `4-1+3`
    and `4-(1-3)` are one, and so are `2*(5-3)` and `-(3-5)*2`. A zero that is added and a one that
    is multiplied by are nothing to compute.
    """
    tokens = _TOKEN.findall(expression)[::-1]
    terms = _sum(tokens)
    assert not tokens, expression
    return _text(terms)


def _sum(tokens: list[str]) -> list[_Term]:
    """Read from the end of `tokens`, which holds the expression backwards."""
    terms = _product(tokens)
    while tokens and tokens[-1] in "+-":
        sign = -1 if tokens.pop() == "-" else 1
        terms = terms + _times(sign, _product(tokens))
    return sorted(terms)


def _product(tokens: list[str]) -> list[_Term]:
    factors = [_factor(tokens)]
    while tokens and tokens[-1] == "*":
        tokens.pop()
        factors.append(_factor(tokens))
    sign, others = 1, []
    for terms in factors:
        if terms in (_ONE, _times(-1, _ONE)):
            sign *= terms[0][1]
        else:
            others.append(terms)
    return _times(sign, others[0] if len(others) == 1 else _joined(others))


def _joined(factors: Iterable[list[_Term]]) -> list[_Term]:
    """Multiply sums: each one becomes a factor whose sign is drawn out of its brackets."""
    sign, parts = 1, list[str]()
    for terms in factors:
        opposite = _times(-1, terms)
        if terms == opposite:  # zero, as in (2-2)
            return []
        if terms < opposite:
            sign, terms = -sign, opposite
        parts += terms[0][0] if len(terms) == 1 else [f"({_text(terms)})"]
    return [(tuple(sorted(parts)), sign)]


def _factor(tokens: list[str]) -> list[_Term]:
    token = tokens.pop()
    if token in "+-":
        return _times(-1 if token == "-" else 1, _factor(tokens))
    if token == "(":
        terms = _sum(tokens)
        assert tokens.pop() == ")"
        return terms
    number = Decimal(token)
    if number in (0, 1):
        return _ONE if number else []
    return [((f"{number.normalize():f}",), 1)]


def _times(sign: int, terms: Iterable[_Term]) -> list[_Term]:
    return sorted((factors, sign * own) for factors, own in terms)


def _text(terms: Iterable[_Term]) -> str:
    signed = ("-+"[sign > 0] + ("*".join(factors) or "1") for factors, sign in terms)
    return "".join(signed) or "0"
