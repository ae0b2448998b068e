"""What all tests share: benchmark data, threads, and when a test of the network may skip."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.figures import Figures, take_figures
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Attach the figures of a test to its report, which also crosses from other processes."""
    try:
        yield
    finally:
        item.user_properties.append(("figures", take_figures()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the largest value of each figure beside its bound."""
    largest: Figures = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, figures in getattr(report, "user_properties", ()):
                if key == "figures" and report.when == "call":
                    for name, (value, bound) in figures.items():
                        known = largest.get(name, (0.0, bound))[0]
                        largest[name] = (max(known, value), bound)
    if largest:
        terminalreporter.section("largest differences seen")
        for name, (value, bound) in sorted(largest.items()):
            terminalreporter.write_line(f"{value:9.2e} of {bound:.0e}  {name}")
