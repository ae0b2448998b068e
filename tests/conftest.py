"""What all tests share: benchmark data, threads, and when a test of the network may skip."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from ziphius.core.assets import ASSETS, is_cached

ROOT = Path(__file__).parent.parent

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and what tests
# start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny tensors: a second thread only waits for the first, and spins while it waits.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of benchmark data, which is no part of the repository."""
    folder = Path(os.environ.get("ZIPHIUS_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder}: set ZIPHIUS_DATA to its folder")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a `net` test skip only where it cannot run: asset not in the cache and no index.

    The marker names the assets a test needs, all of them when it names none. Where CI is set an
    index that cannot be reached is a failure, so that a broken network never passes for green.
    """
    marker = item.get_closest_marker("net")
    if marker is None:
        return
    for name in marker.args or ASSETS:
        if not is_cached(name) and (problem := index_problem(ASSETS[name].package)):
            outcome = pytest.fail if os.environ.get("CI") else pytest.skip
            outcome(f"asset {name}: not fetched, and the index cannot be reached: {problem}")


@cache
def index_problem(package: str) -> str | None:
    """Ask pip, once per run, for a package's versions; return its complaint if it finds none."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--retries", "1", package]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return None if result.returncode == 0 else result.stderr.strip().splitlines()[-1]
