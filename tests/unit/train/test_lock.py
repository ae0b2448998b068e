import os
import subprocess
import sys
from pathlib import Path

import pytest

from ziphius.core.errors import OutputError
from ziphius.train.errors import TrainingError
from ziphius.train.lock import LOCK_FILE, locked


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(TrainingError, match=f"in use by process {os.getpid()} on "),
        locked(tmp_path),
    ):
        pass


def test_the_lock_ends_with_the_block_even_by_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with pytest.raises(ZeroDivisionError), locked(folder):
        _ = 1 / 0
    with locked(folder):
        assert (folder / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    # The kernel's lock on the open file is what counts; the package need not be imported for it.
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('process 1 on elsewhere', file=f, flush=True); print('held', flush=True);"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="process 1 on elsewhere"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        pass


def test_a_longer_name_of_an_earlier_holder_is_gone(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("process 12345678901234567890 on " + "x" * 300)
    with locked(tmp_path):
        assert "x" * 300 not in (tmp_path / LOCK_FILE).read_text()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="Cannot use the folder"), locked(tmp_path / "run"):
        pass
