"""Steps that several solvers take, each small enough to be learned as a fact."""

from collections.abc import Iterable
from decimal import Decimal


def add_up(first: str, terms: Iterable[str]) -> tuple[list[str], str]:
    """Add signed terms to a first number, one decimal place at a time.

    `15-69` becomes `15-60=-45` and `-9=-54`: a line goes on from the total above it, and adds a
    single digit at its place.

    Returns:
        The lines, and the total.
    """
    total, lines, start = Decimal(first), [], first
    for term in terms:
        for part in _places(term):
            total += Decimal(part)
            lines.append(f"{start}{part}={total}")
            start = ""
    return lines, str(total)


def multiply(a: int, b: int) -> list[str]:
    """Multiply by one digit of b at a time; the last line ends in the product."""
    digits = str(b)
    parts = [digit + "0" * (len(digits) - i - 1) for i, digit in enumerate(digits) if digit != "0"]
    lines = [f"{a}*{part}={a * int(part)}" for part in parts or ["0"]]
    first, *rest = (line.partition("=")[2] for line in lines)
    return [*lines, *add_up(first, [f"+{number}" for number in rest])[0]]


def euclid(a: int, b: int) -> tuple[list[str], int]:
    """Return the lines `48=1*36+12`, `36=3*12+0` and the divisor, for a >= b > 0."""
    lines = []
    while b:
        lines.append(f"{a}={a // b}*{b}+{a % b}")
        a, b = b, a % b
    return lines, a


def _places(term: str) -> list[str]:
    """Split `-12.5` into `-10`, `-2` and `-0.5`; what is zero falls away, unless all is."""
    sign, digits = term[0], term[1:]
    whole, point, decimals = digits.partition(".")
    parts = [digit + "0" * (len(whole) - i - 1) for i, digit in enumerate(whole)]
    parts += [f"0{point}{'0' * i}{digit}" for i, digit in enumerate(decimals)]
    return [sign + part for part in parts if Decimal(part)] or [sign + "0"]
