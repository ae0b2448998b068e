"""Not every device has float64 (Apple's GPUs raise): who computes in it says on which device."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "ziphius"

# Functions that name torch's float64, and why they never ask it of a device without it.
ALLOWED = {
    "dist/world.py:_exact": "the tensor is made where core/device.py says that float64 is",
    "engine/sampler.py:_columns": "settings stay on the CPU",
    "models/capacity.py:drop_overflow": "moved where core/device.py says that float64 is",
    "ops/native/sampling.py:sample": "a kernel of the CPU",
    "ops/precision.py:prefer_onednn_for_float32": "a product on the CPU, to try the CPU",
    "ops/sampling.py:keep_top_p": "moved where core/device.py says that float64 is",
    "ops/sampling.py:inverse_cdf": "moved where core/device.py says that float64 is",
    "ops/sampling.py:Sampler.__init__": "made where core/device.py says that float64 is",
    "train/sums.py:Sums.totals": "the tensors are made where core/device.py says that float64 is",
    "train/stages/extend.py:loss_by_position": "the losses are brought to the CPU first",
}


def users(root: Path) -> Iterator[str]:
    """Name the functions in which torch's float64 is asked for."""
    for path in sorted(root.rglob("*.py")):
        yield from (
            f"{path.relative_to(root)}:{name}" for name in _users(ast.parse(path.read_text()))
        )


def _users(tree: ast.AST, inside: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _users(node, f"{inside}.{node.name}".lstrip(".") if named else inside)
        if not isinstance(node, ast.Attribute):
            continue
        of_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
        if node.attr == "double" or (of_torch and node.attr in ("float64", "double")):
            yield inside


def test_every_use_of_float64_says_on_which_device() -> None:
    assert sorted(set(users(SOURCE)) - set(ALLOWED)) == []


def test_the_allow_list_has_nothing_old() -> None:
    assert sorted(set(ALLOWED) - set(users(SOURCE))) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("return x.double()", ["a.py:A.f"]),
        ("return x.to(torch.float64)", ["a.py:A.f"]),
        ("return x.cumsum(-1, dtype=torch.double)", ["a.py:A.f"]),
        ("return np.float64(x)", []),
        ("return x.float()", []),
    ],
)
def test_the_checker_sees(line: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"class A:\n    def f(x):\n        {line}\n")
    assert list(users(tmp_path)) == found
