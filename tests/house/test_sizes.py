"""Files and functions stay short enough to be read at one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 600, 60

# What may be longer, and why. A name of a function stands after its file: "src/a.py:f".
ALLOWED: dict[str, str] = {}


def too_long(root: Path) -> Iterator[str]:
    """Name files and functions, tests included, that are longer than they may be."""
    for path in sorted([*(root / "src").rglob("*.py"), *(root / "tests").rglob("*.py")]):
        name, text = str(path.relative_to(root)), path.read_text()
        if text.count("\n") > LONGEST_FILE:
            yield name
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
            ):
                yield f"{name}:{node.name}"


def test_files_and_functions_are_short() -> None:
    assert sorted(set(too_long(ROOT)) - set(ALLOWED)) == []


def test_the_allow_list_has_reasons_and_nothing_old() -> None:
    assert sorted(set(ALLOWED) - set(too_long(ROOT))) == []
    assert all(len(reason.split()) > 3 for reason in ALLOWED.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 600, []),
        ("x = 1\n" * 601, ["src/a.py"]),
        ("def f():\n" + "    x = 1\n" * 59, []),
        ("def f():\n" + "    x = 1\n" * 60, ["src/a.py:f"]),
        ("class A:\n    async def f():\n" + "        x = 1\n" * 60, ["src/a.py:f"]),
    ],
)
def test_the_checker_sees(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text(text)
    assert list(too_long(tmp_path)) == found
