"""One form for all ways to write a computation, and another for another computation."""

import ast
import operator
from collections.abc import Iterator
from random import Random

import pytest

from ziphius.tasks.canonical import canonical

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.UAdd: operator.add,
    ast.USub: operator.sub,
}


@pytest.mark.parametrize(
    ("form", "expressions"),
    [
        ("-1+3+4", ["3+4-1", "4 - 1 + 3", "-1+4+3", "4-(1-3)", "(3+4)-1", "0+3+4-1", "3+4-1*1"]),
        ("+2*3*4", ["2*3*4", "4*(3*2)", "-2*4*-3", "(2)*(3*4)"]),
        ("+(+1-3)*2*4", ["4*(1-3)*2", "-(3-1)*2*4", "2*(3-1)*-4"]),
        ("+1.5+2", ["1.50+2.0", "2+1.5-0.0"]),
        ("0", ["0", "0*3", "-0", "0*(2-5)", "(2-2)*7"]),
        ("-2*3", ["2*-3", "-(3*2)"]),
    ],
)
def test_what_is_one_computation_reads_alike(form: str, expressions: list[str]) -> None:
    assert {canonical(expression) for expression in expressions} == {form}


def test_what_is_another_computation_does_not() -> None:
    others = ["3+4-1", "3-4+1", "3+4+1", "3*4-1", "3*(4-1)", "(3+4)*1", "34-1", "3+4-1-1"]
    assert len({canonical(expression) for expression in others}) == len(others)


def expressions(random: Random, count: int) -> Iterator[str]:
    """Draw sums of products, with brackets."""
    for _ in range(count):
        text = str(random.randint(-9, 9))
        for _ in range(random.randint(1, 4)):
            text = random.choice((f"({text})", f"{random.randint(0, 9)}-({text})", text))
            text += random.choice("+-*") + str(random.randint(-9, 9))
        yield text


def value(node: ast.expr) -> int:
    """Compute the tree of an expression, read by Python's own parser."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](0, value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](value(left), value(right))
    raise ValueError(ast.dump(node))


def computed(expression: str) -> int:
    return value(ast.parse(expression, mode="eval").body)


def test_the_form_has_the_value_of_the_expression() -> None:
    for expression in expressions(Random(1), 500):
        form = canonical(expression)
        assert computed(form) == computed(expression), (expression, form)
        assert canonical(form) == form


Tree = int | tuple[str, list["Tree"]]


def grown(random: Random, depth: int) -> Tree:
    """Draw a number, or a sum or product of such trees."""
    if depth == 0 or random.random() < 0.3:
        return random.randint(-9, 9)
    return random.choice("+*"), [grown(random, depth - 1) for _ in range(random.randint(2, 3))]


def written(tree: Tree, random: Random) -> str:
    """Write a tree with its parts in some order."""
    if isinstance(tree, int):
        return str(tree)
    sign, parts = tree
    return "(" + sign.join(written(part, random) for part in random.sample(parts, len(parts))) + ")"


def test_order_changes_nothing() -> None:
    random = Random(2)
    for _ in range(300):
        tree = grown(random, 3)
        forms = {canonical(written(tree, random)) for _ in range(5)}
        assert len(forms) == 1, (tree, forms)
