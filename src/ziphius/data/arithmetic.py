"""Arithmetic with its steps: the exercises whose question is an expression or a number.

Each function draws the numbers and writes a question in English and Chinese, the steps, which hold
line by line, and the answer.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from random import Random

Both = tuple[str, str]
"""The same words in English and in Chinese."""


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question, the steps to its answer, and the answer."""

    question: Both
    steps: list[str | Both]
    answer: str


def ask(expression: str) -> Both:
    """Ask for the value of an expression."""
    return f"What is {expression}?", f"{expression} \u7b49\u4e8e\u591a\u5c11\uff1f"


def _number(random: Random, digits: int) -> int:
    return random.randrange(10 ** (digits - 1), 10**digits)


def addition(random: Random) -> Exercise:
    """Add digit by digit, with carries."""
    a, b = _number(random, random.randint(2, 5)), _number(random, random.randint(2, 5))
    steps: list[str | Both] = []
    carry, left, right = 0, a, b
    while left or right:
        x, y = left % 10, right % 10
        total = x + y + carry
        terms = f"{x} + {y} + {carry}" if carry else f"{x} + {y}"
        carry = total // 10
        steps.append(
            (
                f"{terms} = {total}, write {total % 10}" + ", carry 1" * carry,
                f"{terms} = {total}\uff0c\u5199 {total % 10}" + "\uff0c\u8fdb 1" * carry,
            )
        )
        left, right = left // 10, right // 10
    return Exercise(ask(f"{a} + {b}"), [*steps, f"{a} + {b} = {a + b}"], str(a + b))


def subtraction(random: Random) -> Exercise:
    """Subtract by taking away thousands, hundreds, tens and ones in turn."""
    b, a = sorted((_number(random, random.randint(2, 4)), _number(random, 4)))
    steps: list[str | Both] = []
    rest = a
    for power in range(len(str(b)) - 1, -1, -1):
        part = b // 10**power % 10 * 10**power
        if part:
            steps.append(f"{rest} - {part} = {rest - part}")
            rest -= part
    return Exercise(ask(f"{a} - {b}"), steps, str(a - b))


def multiplication(random: Random) -> Exercise:
    """Multiply by partial products."""
    a, b = _number(random, random.randint(2, 3)), _number(random, random.randint(1, 3))
    parts = [b // 10**i % 10 * 10**i for i in range(len(str(b))) if b // 10**i % 10]
    steps: list[str | Both] = [f"{a} * {part} = {a * part}" for part in parts]
    total = a * parts[0]
    for part in parts[1:]:
        steps.append(f"{total} + {a * part} = {total + a * part}")
        total += a * part
    return Exercise(ask(f"{a} * {b}"), steps, str(a * b))


def division(random: Random) -> Exercise:
    """Divide digit by digit, with a remainder."""
    a, b = _number(random, random.randint(3, 5)), random.randint(2, 12)
    steps: list[str | Both] = []
    rest = 0
    for digit in str(a):
        rest = rest * 10 + int(digit)
        if rest >= b:
            steps.append(f"{rest} = {b} * {rest // b} + {rest % b}")
            rest %= b
    steps.append(f"{a} = {b} * {a // b} + {a % b}")
    question = (
        f"Divide {a} by {b}. What are the quotient and the remainder?",
        f"{a} \u9664\u4ee5 {b}\uff0c\u5546\u548c\u4f59\u6570\u5404\u662f\u591a\u5c11\uff1f",
    )
    return Exercise(question, steps, f"{a // b}, {a % b}")


def chain(random: Random) -> Exercise:
    """Work out an expression of several operations, products first."""
    a, b, c, d = (random.randint(2, 40) for _ in range(4))
    sign = random.choice("+-")
    signed = b * c if sign == "+" else -b * c
    question = f"{a} {sign} {b} * {c} + {d}"
    steps: list[str | Both] = [
        f"{b} * {c} = {b * c}",
        f"{a} {sign} {b * c} = {a + signed}",
        f"{a + signed} + {d} = {a + signed + d}",
    ]
    return Exercise(ask(question), steps, str(a + signed + d))


def brackets(random: Random) -> Exercise:
    """Work out a product of two brackets."""
    a, b, c = (random.randint(2, 30) for _ in range(3))
    d = random.randint(1, c)
    steps: list[str | Both] = [
        f"{a} + {b} = {a + b}",
        f"{c} - {d} = {c - d}",
        f"{a + b} * {c - d} = {(a + b) * (c - d)}",
    ]
    return Exercise(ask(f"({a} + {b}) * ({c} - {d})"), steps, str((a + b) * (c - d)))


def fraction_sum(random: Random) -> Exercise:
    """Add two fractions over their least common denominator."""
    p, q = random.randint(2, 12), random.randint(2, 12)
    a, b = random.randint(1, p - 1), random.randint(1, q - 1)
    common = math.lcm(p, q)
    x, y = a * common // p, b * common // q
    steps: list[str | Both] = [
        (f"The common denominator is {common}.", f"\u516c\u5206\u6bcd\u662f {common}\u3002"),
        f"{a}/{p} = {x}/{common}",
        f"{b}/{q} = {y}/{common}",
        f"{x}/{common} + {y}/{common} = {x + y}/{common}",
    ]
    total = Fraction(x + y, common)
    if total.denominator != common:
        steps.append(f"{x + y}/{common} = {total}")
    return Exercise(ask(f"{a}/{p} + {b}/{q}"), steps, str(total))


def simplification(random: Random) -> Exercise:
    """Cancel a fraction by the greatest common divisor."""
    a, b, factor = random.randint(1, 20), random.randint(2, 20), random.randint(2, 15)
    top, bottom = a * factor, b * factor
    divisor = math.gcd(top, bottom)
    steps: list[str | Both] = [
        f"gcd({top}, {bottom}) = {divisor}",
        f"{top} / {divisor} = {top // divisor}",
        f"{bottom} / {divisor} = {bottom // divisor}",
    ]
    question = (
        f"Simplify the fraction {top}/{bottom}.",
        f"\u5316\u7b80\u5206\u6570 {top}/{bottom}\u3002",
    )
    return Exercise(question, steps, str(Fraction(top, bottom)))


def greatest_divisor(random: Random) -> Exercise:
    """Find a greatest common divisor by Euclid's algorithm."""
    factor = random.randint(1, 20)
    a, b = random.randint(5, 60) * factor, random.randint(5, 60) * factor
    steps: list[str | Both] = []
    x, y = max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {y} * {x // y} + {x % y}")
        x, y = y, x % y
    question = (
        f"Find the greatest common divisor of {a} and {b}.",
        f"\u6c42 {a} \u548c {b} \u7684\u6700\u5927\u516c\u56e0\u6570\u3002",
    )
    return Exercise(question, steps, str(x))


def least_multiple(random: Random) -> Exercise:
    """Find a least common multiple from the greatest common divisor."""
    a, b = random.randint(4, 60), random.randint(4, 60)
    divisor = math.gcd(a, b)
    steps: list[str | Both] = [
        f"gcd({a}, {b}) = {divisor}",
        f"{a} * {b} = {a * b}",
        f"{a * b} / {divisor} = {a * b // divisor}",
    ]
    question = (
        f"Find the least common multiple of {a} and {b}.",
        f"\u6c42 {a} \u548c {b} \u7684\u6700\u5c0f\u516c\u500d\u6570\u3002",
    )
    return Exercise(question, steps, str(a * b // divisor))


def equation(random: Random) -> Exercise:
    """Solve a linear equation in two steps."""
    x, a, b = random.randint(-20, 30), random.randint(2, 15), random.randint(1, 50)
    c = a * x + b
    steps: list[str | Both] = [
        f"{a}x = {c} - {b}",
        f"{c} - {b} = {a * x}",
        f"{a * x} / {a} = {x}",
        f"x = {x}",
    ]
    return Exercise(
        (f"Solve {a}x + {b} = {c}.", f"\u89e3\u65b9\u7a0b {a}x + {b} = {c}\u3002"),
        steps,
        f"x = {x}",
    )


def factors(random: Random) -> Exercise:
    """Take a number apart into primes."""
    number = random.randint(12, 999)
    steps: list[str | Both] = []
    rest, primes = number, []
    for prime in range(2, number + 1):
        while rest % prime == 0:
            primes.append(str(prime))
            steps.append(f"{rest} / {prime} = {rest // prime}")
            rest //= prime
    question = (
        f"Factor {number} into primes.",
        f"\u628a {number} \u5206\u89e3\u8d28\u56e0\u6570\u3002",
    )
    steps.append(f"{' * '.join(primes)} = {number}")
    return Exercise(question, steps, " * ".join(primes))


def binary(random: Random) -> Exercise:
    """Write a number in base 2 by repeated division."""
    number = random.randint(5, 255)
    steps: list[str | Both] = []
    rest = number
    while rest:
        steps.append(f"{rest} = 2 * {rest // 2} + {rest % 2}")
        rest //= 2
    question = (
        f"Write {number} in binary.",
        f"\u628a {number} \u5199\u6210\u4e8c\u8fdb\u5236\u6570\u3002",
    )
    return Exercise(question, steps, f"{number:b}")


def power(random: Random) -> Exercise:
    """Multiply a number with itself a few times."""
    base, exponent = random.randint(2, 12), random.randint(2, 5)
    steps: list[str | Both] = []
    value = base
    for _ in range(exponent - 1):
        steps.append(f"{value} * {base} = {value * base}")
        value *= base
    return Exercise(ask(f"{base}^{exponent}"), steps, str(value))
