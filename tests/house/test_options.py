"""Every option explains itself, and the page of the command line says what the commands say."""

import importlib
import inspect
import pkgutil
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import ziphius
from ziphius.cli.main import COMMANDS, EXAMPLES, load_command
from ziphius.cli.options import parse_options
from ziphius.cli.reference import reference
from ziphius.core.config import Config

ROOT = Path(__file__).parents[2]


def configs() -> list[type[Config]]:
    """Import the whole package and collect its configs."""
    for module in pkgutil.walk_packages(ziphius.__path__, "ziphius."):
        importlib.import_module(module.name)
    found, waiting = set(), [Config]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found |= set(subclasses)
    return sorted((c for c in found if c.__module__.startswith("ziphius.")), key=str)


def unexplained(config: type[Config]) -> Iterator[str]:
    """Name the fields without a docstring, except constants, where there is nothing to choose."""
    for name, field in config.model_fields.items():
        is_constant = get_origin(field.annotation) is Literal and (
            len(get_args(field.annotation)) == 1
        )
        if not (field.description or is_constant):
            yield f"{config.__name__}.{name}"


def examples() -> list[str]:
    """Collect the command lines of the help page and of the commands' own docstrings."""
    found = [f"ziphius {line}" for line, _ in EXAMPLES]
    for name in COMMANDS:
        text = inspect.cleandoc(load_command(name)[1].__doc__ or "")
        lines = (line.strip() for line in text.splitlines())
        own = [line for line in lines if line.startswith("ziphius ")]
        assert own, f"the help of {name} has no example"
        found += own
    return found


def test_every_field_explains_itself() -> None:
    assert len(configs()) > 3
    assert [name for config in configs() for name in unexplained(config)] == []


def test_the_checker_sees_a_field_without_docstring() -> None:
    class Bad(Config):
        kind: Literal["only"] = "only"
        good: int = 1
        """Explained."""
        bad: int = 1

    assert list(unexplained(Bad)) == ["Bad.bad"]


def test_every_file_with_a_config_of_its_name_is_a_command() -> None:
    files = (ROOT / "src" / "ziphius" / "cli").glob("*.py")
    commands = {f.stem for f in files if f"class {f.stem.capitalize()}Config" in f.read_text()}
    assert commands == set(COMMANDS)


@pytest.mark.parametrize("line", examples())
def test_examples_parse(line: str) -> None:
    _, name, *args = shlex.split(line.partition("|")[0].partition("<")[0], comments=True)
    config_class, _ = load_command(name)
    assert isinstance(parse_options(config_class, args, prog=name, description=None), config_class)


def test_the_page_of_the_command_line_is_current() -> None:
    message = "docs/cli.md is behind the commands: run `make docs`"
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), message
