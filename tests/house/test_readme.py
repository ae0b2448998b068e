"""The README is short, and what it tells a reader to type works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LONGEST = 200
COMMAND_TIMEOUT_S = 240
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """One command, or one block of Python, that a reader is told to run."""

    language: str
    code: str


def steps(text: str) -> Iterator[Step]:
    """Take the code blocks of a page apart, in order; a block of Python is one step."""
    for language, block in BLOCK.findall(text):
        if language == "python":
            yield Step(language, block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                # What sets the reader up is not run here: its targets are checked to be there.
                if words[0] in ("git", "cd"):
                    continue
                yield Step("make" if words[0] == "make" else language, line)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def run(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as a reader with an activated environment would."""
    shell = (
        ["bash", "-euo", "pipefail", "-c"] if step.language == "bash" else [sys.executable, "-c"]
    )
    path = f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*shell, step.code],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder beside which `bin/ziphius` runs this checkout."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    command = tmp_path / "bin" / "ziphius"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziphius.cli.main "$@"\n')
    command.chmod(0o755)
    return tmp_path / "work"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= LONGEST


def test_make_targets_of_the_readme_are_there() -> None:
    named = [step.code.split()[1] for step in steps(README.read_text()) if step.language == "make"]
    assert {"run", "test"} <= set(named) <= make_targets()


@pytest.mark.slow
def test_the_readme_works_as_it_stands(folder: Path) -> None:
    commands = [step for step in steps(README.read_text()) if step.language != "make"]
    assert commands
    for step in commands:
        result = run(step, folder)
        assert result.returncode == 0, f"{step.code}\n{result.stdout}\n{result.stderr}"


def test_the_checker_takes_blocks_apart() -> None:
    page = (
        "```bash\ngit clone x && cd x\nmake run  # sets up\n"
        "ziphius a \\\n  b # why\n\n# note\nls\n```\n"
        "```text\nls\n```\n```python\nx = 1\n\ny = 2\n```\n"
    )
    languages, codes = zip(*steps(page), strict=True)
    assert languages == ("make", "bash", "bash", "python")
    assert [shlex.split(code, comments=True) for code in codes[1:3]] == [
        ["ziphius", "a", "b"],
        ["ls"],
    ]
    assert codes[3] == "x = 1\n\ny = 2\n"


def test_the_checker_sees_a_command_that_fails(folder: Path) -> None:
    assert run(Step("bash", "ziphius --version"), folder).stdout.startswith("ziphius ")
    assert run(Step("bash", "ziphius --versoin"), folder).returncode == 2
    assert run(Step("bash", "false | true"), folder).returncode == 1
    assert run(Step("python", "import ziphius; assert False"), folder).returncode == 1
