import os
import subprocess
import sys
import time
from types import ModuleType
from typing import Annotated

import pytest
from pydantic import Field

import ziphius
from ziphius.cli import main as main_module
from ziphius.cli.main import COMMANDS, main
from ziphius.cli.options import AsJson
from ziphius.core.config import Config
from ziphius.core.errors import ConfigError


class Inner(Config):
    """How it goes."""

    rate: Annotated[float, Field(gt=0)] = 1.0
    """How fast."""


class DiveConfig(Config):
    depth_m: Annotated[int, Field(ge=0, le=3_000)] = 100
    """How deep."""
    inner: Inner = Inner(rate=2.0)
    """How it goes."""
    long: int = 7
    """A text that was broken after this word
    in the source and goes on."""
    sonar: bool = True
    """Listen for squid."""
    as_json: AsJson = False
    """Print JSON."""


def dive(config: DiveConfig) -> None:
    """Go down."""
    if config.depth_m == 13:
        raise ConfigError("depth_m is 13: choose another depth")
    if config.depth_m == 14:
        Inner(rate=-1)
    if config.depth_m == 15:
        raise KeyboardInterrupt
    print(config.model_dump_json())


@pytest.fixture(autouse=True)
def _dive_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ziphius.cli.dive")
    vars(module).update(DiveConfig=DiveConfig, dive=dive)
    monkeypatch.setitem(sys.modules, "ziphius.cli.dive", module)
    monkeypatch.setitem(COMMANDS, "dive", "go down")


def test_options_reach_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dive", "--depth-m", "5", "--json"]) == 0
    assert (
        capsys.readouterr().out
        == '{"depth_m":5,"inner":{"rate":2.0},"long":7,"sonar":true,"as_json":true}\n'
    )


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert "\n  dive      go down\n" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ziphius {ziphius.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dvie"], "There is no command 'dvie'. Did you mean dive?"),
        (["zzz"], "There is no command 'zzz'. Commands: "),
        (["dive", "--depth-m", "13"], "ziphius: error: depth_m is 13: choose another depth\n"),
        (["dive", "--depth-m", "14"], "rate: Input should be greater than 0, not -1\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ziphius: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--depth-m", "9000"], "depth_m: Input should be less than or equal to 3000, not 9000"),
        (["--inner.rate", "0"], "rate: Input should be greater than 0, not 0.0"),
        (["--depht-m", "1"], "--depth-m INT"),
        (["--no-json"], "--no-json"),
    ],
)
def test_a_bad_option_is_named_in_plain_words(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["dive", *args])
    assert raised.value.code == 2
    err = " ".join(capsys.readouterr().err.replace("|", " ").replace("\u2502", " ").split())
    assert message in err
    assert "pydantic" not in err


def test_the_help_of_a_command_shows_docstrings_and_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["dive", "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert "Go down." in out
    assert "How deep. (default: 100)" in out
    assert "How fast. (default: 2.0)" in out


def test_the_lines_of_a_docstring_flow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["dive", "--help"])
    text = "A text that was broken after this word in the source and goes on."
    assert text in capsys.readouterr().out


def test_what_is_on_by_default_has_an_option_that_says_it_switches_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["dive", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--no-sonar Switches off: listen for squid. (default: True)" in words


def test_ctrl_c_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dive", "--depth-m", "15"]) == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        main_module, "load_command", lambda name: (DiveConfig, lambda config: 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        main(["dive"])


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from ziphius.cli.main import main; sys.exit(main(['--help']))"
    command = ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, code]
    # With its usual buffer Python would try, and complain, once more at its end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout == "141\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "dive"])
def test_the_help_of_no_command_imports_anything_heavy(name: str) -> None:
    code = (
        "import sys; from ziphius.cli.main import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ziphius.cli.main import main; main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    # 0.25 s on two idle cores; the limit leaves room for a busy machine.
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "args",
    [
        ["pretrain", "--train.learning-rate", "-1"],
        ["pretrain", "--train.optimizer.beta1", "2"],
        ["generate", "v3-tiny", "x", "--top-k", "9" * 23],
        ["generate", "v3-tiny", "x", "--n", "3000"],
        ["inspect", "~no-such-user/x"],
        ["inspect", "x" * 300],
        ["generate", "~no-such-user/x", "x"],
        ["generate", "x" * 300, "x"],
        ["generate", "v3-tiny", "caf\udce9"],
        ["caf\udce9"],
    ],
)
def test_an_impossible_value_is_one_clear_message(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(args)
    except SystemExit as stopped:  # from the parser, which prints a box
        code = stopped.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_waiting_threads_spin_briefly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert main(["--version"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["--version"]) == 0
    assert "GOMP_SPINCOUNT" not in os.environ
