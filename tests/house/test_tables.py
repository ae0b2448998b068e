"""No entry of a table stands there for nobody: each is used by a test or by a preset.

A table is a public module-level dict in capitals with the type `dict[str, ...]`. An entry is used
when its key is a string in a test or in the presets, or when a test goes through the whole table.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESETS = Path("src/ziphius/models/presets.py")


def tables(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Name the tables of a file and their keys, as far as they are written out."""
    for node in tree.body:
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=kind, value=ast.Dict(keys=keys)
            ):
                if name.isupper() and name[0] != "_" and ast.unparse(kind).startswith("dict[str,"):
                    yield name, [key.value for key in keys if isinstance(key, ast.Constant)]


def strings(tree: ast.AST) -> set[str]:
    """Collect the strings of a file."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def walked_tables(tree: ast.AST) -> set[str]:
    """Name the tables that tests go through as a whole: parametrised, drawn from, or in a loop."""
    wholes: list[ast.AST] = []
    for node in ast.walk(tree):
        match node:
            case ast.For(iter=iterable) | ast.comprehension(iter=iterable):
                wholes.append(iterable)
            case ast.Call(func=ast.Attribute(attr="parametrize" | "sampled_from")):
                wholes.append(node)
    names = (node for whole in wholes for node in ast.walk(whole) if isinstance(node, ast.Name))
    return {node.id for node in names if node.id.isupper()}


def unused(root: Path) -> list[str]:
    """List the entries that nothing uses, as "TABLE[key] of file"."""
    trees = {
        path.relative_to(root): ast.parse(path.read_text())
        for folder in ("src", "tests")
        for path in sorted((root / folder).rglob("*.py"))
    }
    tests = [tree for path, tree in trees.items() if path.parts[0] == "tests"]
    walked = set().union(*map(walked_tables, tests))
    found = []
    for path, tree in trees.items():
        users = [*tests, *(trees[p] for p in (PRESETS,) if p in trees and p != path)]
        used = set().union(*map(strings, users))
        for name, keys in tables(tree):
            if path.parts[0] == "src" and name not in walked:
                found += [f"{name}[{key}] of {path}" for key in keys if key not in used]
    return found


def test_every_entry_of_every_table_is_used() -> None:
    assert unused(ROOT) == []


def test_the_checker_finds_the_tables_there_are() -> None:
    text = (ROOT / "src" / "ziphius" / "core" / "assets.py").read_text()
    assert [name for name, _ in tables(ast.parse(text))] == ["ASSETS"]


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("f('a', 'b')", []),
        ("f('a b')", ["GATES[a] of src/gates.py", "GATES[b] of src/gates.py"]),
        ("f('a')", ["GATES[b] of src/gates.py"]),
        ("@pytest.mark.parametrize('name', sorted(GATES))\ndef test(): pass", []),
        ("for name in GATES: pass", []),
        ("assert all(len(gate) for gate in GATES.values())", []),
        ("len(GATES)", ["GATES[a] of src/gates.py", "GATES[b] of src/gates.py"]),
    ],
)
def test_the_checker_sees(tmp_path: Path, test: str, found: list[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "src" / "gates.py").write_text("GATES: dict[str, type] = {'a': A, 'b': B}\nx = 'b'")
    (tmp_path / "tests" / "test_gates.py").write_text(test)
    assert unused(tmp_path) == found
