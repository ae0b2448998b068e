from pathlib import Path
from typing import Annotated

import pytest
import tyro

from ziphius.cli.options import parse_options
from ziphius.core.config import Config


class Inner(Config):
    path: Path | None = None
    """Inside."""


class Options(Config):
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """By its place."""
    out: Path = Path("~/by-default")
    """By its name."""
    data: tuple[Path, ...] = ()
    """Several."""
    inner: Inner = Inner()
    """In another config."""
    text: str = ""
    """No path."""


def parsed(*words: str) -> Options:
    return parse_options(Options, words, prog="x", description=None)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    options = parsed("~/m", "--out=~/o", "--data", "~/a", "b/~c", "--inner.path=~", "--text=~/t")
    assert (options.model, options.out) == (Path("/h/m"), Path("/h/o"))
    assert options.data == (Path("/h/a"), Path("b/~c"))
    assert options.inner.path == Path("/h")
    assert options.text == "~/t"
    assert parsed("m").out == Path("/h/by-default")


def test_the_home_folder_of_nobody_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("m", "--out=~no-such-user/x")
    assert "~no-such-user/x: there is no such user" in capsys.readouterr().err
