"""No entry of a table stands there for nobody: each is used by a test or by a preset.

A table is a public module-level dict in capitals with the type `dict[str, ...]`, unless its values
are plain numbers. An entry is used when its key is a string in a test or in the presets, is a
default of the model's config, or when a test goes through the whole table.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESETS = Path("src/ziphius/models/presets.py")
CONFIG = Path("src/ziphius/models/config.py")
TABLE = re.compile(r"dict\[str, (?!int\b|float\b)")


def tables(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Name the tables of a file and their keys, as far as they are written out."""
    for node in tree.body:
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=kind, value=ast.Dict(keys=keys)
            ):
                if name.isupper() and name[0] != "_" and TABLE.match(ast.unparse(kind)):
                    yield name, [key.value for key in keys if isinstance(key, ast.Constant)]


def strings(tree: ast.AST) -> set[str]:
    """Collect the strings of a file."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def defaults(tree: ast.AST) -> set[str]:
    """Collect the strings that are defaults of annotated fields in a file."""
    fields = (node.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
    return {node.value for node in fields if isinstance(node, ast.Constant)} - {None}


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
    used = set().union(*map(strings, tests))
    used |= defaults(trees[CONFIG]) if CONFIG in trees else set()
    presets = strings(trees[PRESETS]) if PRESETS in trees else set()
    found = []
    for path, tree in trees.items():
        # The presets' own table would otherwise use itself.
        keys_used = used if path == PRESETS else used | presets
        for name, keys in tables(tree):
            if path.parts[0] == "src" and name not in walked:
                found += [f"{name}[{key}] of {path}" for key in keys if key not in keys_used]
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
    table = "GATES: dict[str, type] = {'a': A, 'b': B}\nBYTES: dict[str, int] = {'c': 1}\nx = 'b'"
    (tmp_path / "src" / "gates.py").write_text(table)
    (tmp_path / "tests" / "test_gates.py").write_text(test)
    assert unused(tmp_path) == found


def test_the_checker_takes_presets_and_defaults_of_the_models_config_for_use(
    tmp_path: Path,
) -> None:
    for path, text in {
        "src/gates.py": "GATES: dict[str, type] = {'a': A, 'b': B, 'c': C}",
        str(CONFIG): "class C:\n    gate: Literal['a', 'b', 'c'] = 'a'",
        str(PRESETS): "PRESETS: dict[str, C] = {'p': C(gate='b')}",
        "tests/test_gates.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert unused(tmp_path) == ["GATES[c] of src/gates.py", f"PRESETS[p] of {PRESETS}"]
