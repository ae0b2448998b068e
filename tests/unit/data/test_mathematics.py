import ast
import hashlib
import operator
import re
from fractions import Fraction
from itertools import islice
from random import Random

import pytest

from ziphius.core.errors import ConfigError
from ziphius.data.mathematics import EXERCISES, exercises, mathematics, render

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(text: str) -> Fraction:
    """Work out an expression of whole numbers exactly."""
    return value_of(ast.parse(text.strip(), mode="eval").body)


def value_of(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value_of(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](value_of(left), value_of(right))
    raise ValueError(ast.dump(node))


def equations(text: str) -> list[tuple[str, str]]:
    """Find the lines `expression = expression`, without any words after them."""
    found = re.findall(r"^([-+*/() \d]+) = ([-+*/() \d]+)", text, re.MULTILINE)
    return [(left, right) for left, right in found if left.strip()]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_step_is_true_and_leads_to_the_answer(name: str) -> None:
    random = Random(name)
    for _ in range(60):
        exercise = EXERCISES[name](random)
        for language in (0, 1):
            text = render(exercise, language, 0)
            steps = equations(text)
            assert steps
            assert all(value(left) == value(right) for left, right in steps), text
        reached = " ".join(side for step in steps for side in step).split()
        numbers = re.findall(r"-?\d+", exercise.answer)
        assert name == "binary" or set(numbers) <= set(re.split(r"[ /]", " ".join(reached)))


def test_answers_are_those_of_the_questions() -> None:
    random = Random(1)
    checked = 0
    for name in ("addition", "subtraction", "multiplication", "chain", "brackets", "fraction_sum"):
        for _ in range(100):
            exercise = EXERCISES[name](random)
            found = re.fullmatch(r"What is (.*)\?", exercise.question[0])
            assert found
            assert value(found[1]) == value(exercise.answer)
            assert exercise.question[1].startswith(found[1])
            checked += 1
    assert checked == 600


@pytest.mark.parametrize(
    ("name", "pattern", "right"),
    [
        ("greatest_divisor", r"of (\d+) and (\d+)", lambda a, b, x: a % x == b % x == 0),
        ("least_multiple", r"of (\d+) and (\d+)", lambda a, b, x: x % a == x % b == 0),
        ("percentage", r"(\d+)% of (\d+)", lambda a, b, x: a * b == 100 * x),
        ("power", r"(\d+)\^(\d+)", lambda a, b, x: a**b == x),
    ],
)
def test_answers_of_other_kinds(name: str, pattern: str, right: object) -> None:
    random = Random(2)
    for _ in range(100):
        exercise = EXERCISES[name](random)
        a, b = map(int, re.search(pattern, exercise.question[0]).groups())
        assert right(a, b, int(exercise.answer)), exercise


NOT_A_NUMBER_AT_THE_END = {"division", "binary", "factors", "greatest_divisor", "simplification"}


@pytest.mark.parametrize("name", sorted(EXERCISES.keys() - NOT_A_NUMBER_AT_THE_END))
def test_the_last_step_is_the_answer(name: str) -> None:
    random = Random(name)
    for _ in range(60):
        exercise = EXERCISES[name](random)
        _, last = equations(render(exercise, 0, 0))[-1]
        assert value(last) == value(exercise.answer.removeprefix("x = "))


def test_digits_that_are_written_make_the_sum() -> None:
    random = Random(5)
    for _ in range(100):
        exercise = EXERCISES["addition"](random)
        for language, pattern in ((0, r"write (\d)"), (1, r"\u5199 (\d)")):
            text = render(exercise, language, 0)
            written = "".join(reversed(re.findall(pattern, text)))
            assert exercise.answer in (written, f"1{written}")


def test_digits_of_a_quotient_come_one_by_one() -> None:
    random = Random(6)
    for _ in range(100):
        exercise = EXERCISES["division"](random)
        digits = re.findall(r"\* (\d+) \+", "\n".join(map(str, exercise.steps[:-1])))
        assert all(0 < int(digit) < 10 for digit in digits)
        quotient, remainder = map(int, exercise.answer.split(", "))
        a, b = map(int, re.findall(r"\d+", exercise.question[0]))
        assert (quotient, remainder) == divmod(a, b)


def test_primes_multiply_to_the_number() -> None:
    random = Random(3)
    for _ in range(100):
        exercise = EXERCISES["factors"](random)
        factors = [int(part) for part in exercise.answer.split(" * ")]
        assert all(f % d for f in factors for d in range(2, f))
        assert f"Factor {value(exercise.answer)} into" in exercise.question[0]


def test_equations_are_solved() -> None:
    random = Random(4)
    for _ in range(100):
        exercise = EXERCISES["equation"](random)
        a, b, c = map(int, re.search(r"(\d+)x \+ (\d+) = (-?\d+)", exercise.question[0]).groups())
        assert a * int(exercise.answer.removeprefix("x = ")) + b == c


def test_a_document_is_a_function_of_seed_and_number() -> None:
    documents = list(islice(mathematics(7), 30))
    assert documents[20] == exercises(7, 20)
    assert len({document.text for document in documents}) == 30
    assert exercises(8, 20).text != exercises(7, 20).text


def test_both_languages_occur_and_are_not_mixed() -> None:
    texts = [document.text for document in islice(mathematics(), 300)]
    chinese = [text for text in texts if re.search("[\u4e00-\u9fff]", text)]
    assert 80 < len(chinese) < 160
    assert not any(re.search("[A-Za-z]{3}", text.replace("gcd", "")) for text in chinese)


def test_with_nothing_left_out_the_text_never_changes() -> None:
    # Figures of models that were trained on it rely on it.
    text = "".join(document.text for document in islice(mathematics(), 300))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c5b9b7d6c0f6f60b"


def test_exercises_that_are_left_out_do_not_occur() -> None:
    names = ("greatest_divisor", "least_multiple", "simplification", "equation")
    texts = [document.text for document in islice(mathematics(0, names), 300)]
    assert len(set(texts)) == 300
    signs = r"gcd|common divisor|common multiple|Simplify|\dx|\u516c\u56e0\u6570|\u65b9\u7a0b"
    assert not [text for text in texts if re.search(signs, text)]
    assert [text for text in map(str, islice(mathematics(), 300)) if re.search(signs, text)]
    assert any("into primes" in text for text in texts)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("gcd", "addition", "sums"), "no exercise gcd, sums. Known: addition, binary, .*travel"),
        (tuple(EXERCISES), "No exercise remains"),
    ],
)
def test_what_cannot_be_left_out_is_named(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        exercises(0, 0, names)
