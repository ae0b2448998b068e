"""What must not stand in this repository: code that runs data, and words of one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "bench", "docs", "src", "tests")
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".cfg", ".yml", ".yaml", ""}

# Modules whose loading of a file can run what the file says.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "torch.load", "os.system", "yaml.load"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
# Hosts of package indexes, without their ending.
INDEXES = ("pypi", "debian")
MACHINE = re.compile(
    r"(?<![\w.])/(?:root|home|work|Users)/\w"
    rf"|(?:{'|'.join(INDEXES)})\.org|pythonhosted|npmjs|proxy\.golang",
)


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Name what in a file of code could run data."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)) if module in UNSAFE_MODULES:
                yield module
            case ast.Call(func=function, keywords=keywords):
                if (called := ast.unparse(function)) in UNSAFE_CALLS:
                    yield called
                for keyword in keywords:
                    is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                    if keyword.arg in UNSAFE_KEYWORDS and not is_off:
                        yield keyword.arg


def machine_words(text: str) -> list[str]:
    """Find paths of somebody's machine and hosts of package indexes."""
    return MACHINE.findall(text)


def texts() -> list[Path]:
    """List the text files that belong to the repository, without this one."""
    tops = [path for path in ROOT.iterdir() if path.is_file()]
    deep = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    return [
        path
        for path in (*tops, *deep)
        if path.is_file()
        and path.suffix in TEXT
        and "egg-info" not in str(path)
        and path != Path(__file__)
    ]


def test_no_code_runs_data() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / "src").rglob("*.py")
        if (names := list(unsafe(ast.parse(path.read_text()))))
    }
    assert found == {}


def test_no_words_of_one_machine() -> None:
    found = {str(path): words for path in texts() if (words := machine_words(path.read_text()))}
    assert found == {}


def test_code_is_ascii() -> None:
    code = [path for path in texts() if path.suffix == ".py"]
    assert len(code) > 20
    assert [str(path) for path in code if not path.read_bytes().isascii()] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("model.eval()", []),
        ("f(trust_remote_code=False)", []),
        ("import pickle", ["pickle"]),
        ("def f():\n    from dill import load", ["dill"]),
        ("eval(x)", ["eval"]),
        ("torch.load(x)", ["torch.load"]),
        ("f(trust_remote_code=True)", ["trust_remote_code"]),
        ("f(shell=flag)", ["shell"]),
    ],
)
def test_the_checker_sees_unsafe_code(code: str, found: list[str]) -> None:
    assert list(unsafe(ast.parse(code))) == found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("see src/home/a.py and https://example.org", 0),
        ("open('/home/me/x')", 1),
        ("cd /home/me/x; ls /home/you/y", 2),
    ],
)
def test_the_checker_sees_machine_words(text: str, count: int) -> None:
    assert len(machine_words(text)) == count


@pytest.mark.parametrize("index", INDEXES)
def test_the_checker_sees_package_indexes(index: str) -> None:
    assert machine_words(f"see https://{index}.org/simple") == [f"{index}.org"]
    assert machine_words(f"see https://{index}.example/simple") == []
