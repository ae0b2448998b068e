"""Imports only point down the floors: never up, sideways or in a circle; heavy ones wait.

Every import counts, also inside functions and under TYPE_CHECKING.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"

# Rooms that do not stand yet are listed, so that they are held to their floor from the first line.
FLOORS = (
    ("core",),
    ("ops", "text", "dist", "sandbox"),
    ("models", "tasks", "data", "quant"),
    ("engine", "train"),
    ("rollout",),
    ("rl", "distill", "evals", "serve"),
    ("recipes",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"gguf", "transformers", "triton", "ray"}
# What would slow `ziphius --help` down, or keep it from working without an extra.
HEAVY_FOR_COMMANDS = {"torch", "tokenizers", "safetensors", "numpy"}


def modules(sources: Path) -> dict[str, Path]:
    """Map the dotted name of every module to its file."""
    return {
        ".".join(path.relative_to(sources).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(sources.rglob("*.py"))
    }


def imports(tree: ast.AST) -> Iterator[str]:
    """Name everything imported anywhere in a file, members of modules included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "relative import"
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[name, *_]):
                yield ast.unparse(name).strip("f'\"")


def wrong_imports(sources: Path) -> list[str]:
    """List imports that do not point down."""
    wrong = []
    for name, path in modules(sources).items():
        for target in imports(ast.parse(path.read_text())):
            if target == "relative import" or target.startswith("ziphius"):
                wrong += [f"{name} imports {target}"] * (not points_down(name, target))
    return wrong


def points_down(name: str, target: str) -> bool:
    """Tell whether a module may import another: its own room, a floor below, or the version."""
    room, other = ((*dotted.split("."), "", "")[1] for dotted in (name, target))
    if target in ("ziphius", "ziphius.__version__"):
        return True
    if other not in FLOOR_OF or room not in FLOOR_OF:
        return False
    return room == other or FLOOR_OF[other] < FLOOR_OF[room]


def circle(sources: Path) -> list[str]:
    """Find modules that import each other in a circle."""
    known = modules(sources)
    graph = {
        name: {
            target if target in known else target.rpartition(".")[0]
            for target in imports(ast.parse(path.read_text()))
            if target.startswith("ziphius.")
        }
        for name, path in known.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def heavy_at_top(sources: Path) -> list[str]:
    """List heavy imports that run as soon as their file is imported."""
    wrong = []
    for name, path in modules(sources).items():
        heavy = HEAVY | HEAVY_FOR_COMMANDS if name.startswith("ziphius.cli") else HEAVY
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if not waits(node)], [])
        for target in imports(top):
            wrong += [f"{name} imports {target}"] * (target.split(".")[0] in heavy)
    return wrong


def waits(node: ast.stmt) -> bool:
    """Tell whether a statement's imports do not run when its file is imported."""
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_every_import_points_down() -> None:
    assert wrong_imports(SOURCES) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(SOURCES) == []


def test_nothing_heavy_is_imported_at_the_top() -> None:
    assert heavy_at_top(SOURCES) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("models/a.py", "from ziphius.core.config import Config", 0),
        ("models/a.py", "import ziphius.models.b", 0),
        ("cli/a.py", "import ziphius", 0),
        ("core/a.py", "from ziphius.models.model import Model", 1),
        ("core/a.py", "import ziphius.cli", 1),
        ("ops/a.py", "from ziphius.text.tokenizer import Tokenizer", 1),
        ("rl/a.py", "from ziphius import evals", 1),
        ("models/a.py", "from ziphius.attic.b import c", 1),
        ("attic/a.py", "from ziphius.core.config import Config", 1),
        ("models/a.py", "from . import b", 1),
        ("models/a.py", "from .b import c", 1),
        ("core/a.py", "def f():\n    from ziphius.cli import main", 1),
        ("core/a.py", "if TYPE_CHECKING:\n    import ziphius.models", 1),
        ("core/a.py", "importlib.import_module(f'ziphius.cli.{name}')", 1),
    ],
)
def test_the_checker_sees(tmp_path: Path, file: str, line: str, wrong: int) -> None:
    write(tmp_path, file, line)
    assert len(wrong_imports(tmp_path)) == wrong


def test_the_checker_sees_circles(tmp_path: Path) -> None:
    write(tmp_path, "core/a.py", "def f():\n    from ziphius.core.b import x")
    write(tmp_path, "core/b.py", "import ziphius.core.c")
    write(tmp_path, "core/c.py", "")
    assert circle(tmp_path) == []
    write(tmp_path, "core/c.py", "from ziphius.core import a")
    assert set(circle(tmp_path)) == {"ziphius.core.a", "ziphius.core.b", "ziphius.core.c"}


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("models/a.py", "import torch", 0),
        ("models/a.py", "def f():\n    import gguf", 0),
        ("models/a.py", "if TYPE_CHECKING:\n    import gguf", 0),
        ("models/a.py", "from transformers.models import x", 1),
        ("models/a.py", "if True:\n    import gguf", 1),
        ("cli/a.py", "import torch.nn", 1),
    ],
)
def test_the_checker_sees_heavy_imports(tmp_path: Path, file: str, line: str, wrong: int) -> None:
    write(tmp_path, file, line)
    assert len(heavy_at_top(tmp_path)) == wrong


def write(folder: Path, file: str, text: str) -> None:
    path = folder / "ziphius" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
