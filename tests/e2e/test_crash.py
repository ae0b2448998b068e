"""Runs that are killed, damaged or started twice end as the run that nothing happened to."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import crash_worker
from tests.e2e.crash_worker import (
    METRICS,
    RELEASE,
    REPLAYED,
    SAVE_EVERY,
    STARTS,
    STEP_S,
    STEPS,
    run_config,
    start,
)
from ziphius.train.checkpoint import CHECKPOINTS, CheckpointStore
from ziphius.train.errors import TrainingError
from ziphius.train.lock import LOCK_FILE, locked
from ziphius.train.manifest import MANIFEST_FILE, check_folder
from ziphius.train.plan import Pace
from ziphius.train.seams import TrainState
from ziphius.train.state import FOLDER, STATE_FILE
from ziphius.train.state_items import STATE_ITEMS, SavedItem, StateItem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
LONGEST_DELAY_S = 0.05
"""From the steps that a test waits for to the signal, on a machine with nothing else to do."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are split over threads: all runs here must have as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Nursery:
    """A process with everything imported that forks those that are to be killed."""

    def __init__(self) -> None:
        self.child: int | None = None
        paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(crash_worker.__file__))],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        folder: Path,
        workers: int,
        *,
        dies_at: tuple[str, int] | None = None,
        holds_at: int | None = None,
    ) -> int:
        """Start on a folder; return the number of the process."""
        wanted = {"folder": str(folder), "workers": workers}
        wanted |= {"dies_at": dies_at, "holds_at": holds_at}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        self.child = self._answer()
        return self.child

    def wait(self) -> int:
        """Return the exit status of the process that was started last."""
        status, self.child = self._answer(), None
        return status

    def finish(self, folder: Path, workers: int) -> dict[str, Any]:
        """Run to the end, which must be a good one."""
        self.start(folder, workers)
        status, log = self.wait(), folder.with_suffix(".log").read_text()
        assert status == 0, log
        result: dict[str, Any] = json.loads(log.splitlines()[-1])
        return result

    def signal(self, folder: Path, workers: int, number: int, steps: int, delay_s: float) -> int:
        """Start, send a signal some steps and some time later; return the exit status."""
        before, release = steps_done(folder), folder.with_suffix(f".{RELEASE}")
        release.unlink(missing_ok=True)
        # As many steps more as may come within the longest delay: then it waits for the signal.
        child = self.start(folder, workers, holds_at=steps + 1 + round(LONGEST_DELAY_S / STEP_S))
        await_(lambda: steps_done(folder) >= before + steps)
        time.sleep(delay_s)
        os.killpg(child, number)
        release.touch()
        return self.wait()

    def close(self) -> None:
        """End, and first what a test that failed left running or stopped."""
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE_S)

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def reference(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert nursery.finish(folder, workers=0) == {"step": STEPS, "stopped_by": None}
    return folder


def await_(happens: Callable[[], bool]) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def steps_done(folder: Path) -> int:
    """Count the steps that all starts did together."""
    path = folder / REPLAYED
    return path.read_text().count("\n") if path.exists() else 0


def final(folder: Path) -> dict[str, Any]:
    """Everything that must be equal: the curve, and all the last checkpoint holds but times."""
    checkpoint = folder / CHECKPOINTS / f"step-{STEPS}"
    files = check_folder(checkpoint).files
    document = json.loads((checkpoint / FOLDER / STATE_FILE).read_bytes())
    del document["parts"]["progress"]["seconds"]
    return {
        "metrics": (folder / METRICS).read_bytes() if (folder / METRICS).exists() else b"",
        **document["parts"],
        **{name: entry.sha256 for name, entry in files.items() if name.endswith(".safetensors")},
    }


def assert_equal_to(reference: Path, folder: Path) -> None:
    """Compare the ends, and each step that was done more than once with the first time."""
    ours, theirs = final(folder), final(reference)
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    losses = set((folder / REPLAYED).read_text().splitlines())
    assert losses == set((reference / REPLAYED).read_text().splitlines())
    assert len(losses) == STEPS
    starts = (folder / STARTS).read_text().splitlines() if (folder / STARTS).exists() else []
    assert all(line.endswith(" yes") for line in starts), starts
    unfinished = [path.name for path in (folder / CHECKPOINTS).glob(".*")]
    assert unfinished == []


def test_five_random_kills(nursery: Nursery, reference: Path, tmp_path: Path) -> None:
    draw = random.Random(os.urandom(8))
    folder, workers = tmp_path / "run", cycle([3, 1, 0])
    for kill in range(5):
        # The first comes after a checkpoint, so that something is gone on with.
        least = 1 if kill else 2 * SAVE_EVERY
        steps, delay_s = draw.randrange(least, 3 * SAVE_EVERY), draw.uniform(0.0, LONGEST_DELAY_S)
        status = nursery.signal(folder, next(workers), signal.SIGKILL, steps, delay_s)
        assert status == -signal.SIGKILL
    nursery.finish(folder, next(workers))
    assert_equal_to(reference, folder)
    assert (folder / STARTS).exists()


CRASH_POINTS = [
    ("fsync", 1),
    ("fsync", 9),
    ("rename", 2),
    ("rename", 5),
    ("fsync", 30),
    ("mkdir", 4),
    ("rename", 12),
    ("fsync", 47),
    ("remove", 1),
    ("remove", 12),
]


def test_ten_crash_points(nursery: Nursery, reference: Path, tmp_path: Path) -> None:
    folder, workers = tmp_path / "run", cycle([0, 2])
    for point in CRASH_POINTS:
        nursery.start(folder, next(workers), dies_at=point)
        assert nursery.wait() == -signal.SIGKILL, point
    nursery.finish(folder, next(workers))
    assert_equal_to(reference, folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_for_a_while_stops_nothing(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    fsync, calls = os.fsync, count()

    def failing(descriptor: int) -> None:
        if 30 <= next(calls) < 34:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    start(tmp_path / "run", run_config())
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) in range(1, 5)
    assert all(os.strerror(code) in warning for warning in warnings)
    assert_equal_to(reference, tmp_path / "run")


def cut(path: Path, older: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, older: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def delete(path: Path, older: Path) -> None:
    path.unlink()


def swap(path: Path, older: Path) -> None:
    shutil.copyfile(older, path)


DAMAGES: list[Callable[[Path, Path], None]] = [cut, flip, delete, swap]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_taken(
    reference: Path, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    shutil.copytree(reference / CHECKPOINTS, tmp_path / CHECKPOINTS)
    newest, before = (tmp_path / CHECKPOINTS / f"step-{STEPS - back}" for back in (0, SAVE_EVERY))
    names = [str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()]
    assert len(names) >= 7
    for name in names:
        path, older = newest / name, before / name
        whole = path.read_bytes()
        if damage is swap and older.read_bytes() == whole:
            continue
        damage(path, older)
        warnings: list[str] = []
        assert CheckpointStore(tmp_path, run_config(), warn=warnings.append).latest() == before
        assert [f"step-{STEPS}: {name} " in warning for warning in warnings] == [True], warnings
        path.write_bytes(whole)
    assert CheckpointStore(tmp_path, run_config()).latest() == newest


def test_a_run_goes_on_from_before_the_damage(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    cut(folder / CHECKPOINTS / f"step-{STEPS}" / "model.safetensors", folder)
    assert start(folder, run_config()).step == STEPS
    assert (folder / STARTS).read_text() == f"{STEPS - SAVE_EVERY} yes\n"
    assert_equal_to(reference, folder)


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(
    reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    for path in folder.glob(f"{CHECKPOINTS}/*/{MANIFEST_FILE}"):
        delete(path, path)
    before = contents(folder)
    with pytest.raises(TrainingError, match=r"is whole .* Nothing was changed"):
        start(folder, run_config())
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE)
    return {str(path): path.read_bytes() for path in files}


def test_a_second_start_is_refused(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        nursery.start(folder, 1)
        assert nursery.wait() == 2
        log = folder.with_suffix(".log").read_text()
        assert log.startswith(f"{folder} is in use by process {os.getpid()} on ")
    assert not (folder / CHECKPOINTS).exists()


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    nursery: Nursery, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGINT):
        assert nursery.signal(folder, 1, number, steps=4, delay_s=0.0) == 0
        newest = CheckpointStore(folder, run_config()).latest()
        assert newest is not None
        # Not one step is lost: the last that was done is the last that was saved.
        assert newest.name == f"step-{steps_done(folder)}"
        assert steps_done(folder) < STEPS
    nursery.finish(folder, 1)
    assert steps_done(folder) == STEPS
    assert_equal_to(reference, folder)


class LeftOut:
    """An item of the train state that somebody forgot."""

    def __init__(self, item: StateItem) -> None:
        self.item = item

    def capture(self, state: TrainState) -> SavedItem:
        return self.item.capture(state)

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        pass


class PartlyLeftOut(LeftOut):
    """An item of the train state of which somebody forgot something."""

    def __init__(self, item: StateItem, forget: Callable[[TrainState, SavedItem], None]) -> None:
        super().__init__(item)
        self.forget = forget

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        self.forget(state, saved)
        self.item.restore(state, saved)


def _biases(state: TrainState, saved: SavedItem) -> None:
    for name in saved.tensors:
        if name.endswith("e_score_correction_bias"):
            saved.tensors[name] = torch.zeros_like(saved.tensors[name])


def _of_now(name: str) -> Callable[[TrainState, SavedItem], None]:
    def forget(state: TrainState, saved: SavedItem) -> None:
        now = STATE_ITEMS["rng"].capture(state)
        saved.tensors[name] = now.tensors[name]

    return forget


def _field(name: str) -> Callable[[TrainState, SavedItem], None]:
    def forget(state: TrainState, saved: SavedItem) -> None:
        saved.values[name] = getattr(state, name)

    return forget


def _moment(name: str) -> Callable[[TrainState, SavedItem], None]:
    def forget(state: TrainState, saved: SavedItem) -> None:
        for key in saved.tensors:
            if key.endswith(f"|{name}"):
                saved.tensors[key] = torch.zeros_like(saved.tensors[key])

    return forget


FORGOTTEN: dict[str, tuple[str, Callable[[TrainState, SavedItem], None] | None]] = {
    "weights": ("model", None),
    "router biases": ("model", _biases),
    "optimizer": ("optimizer", None),
    "first moments": ("optimizer", _moment("exp_avg")),
    "second moments": ("optimizer", _moment("exp_avg_sq")),
    "steps of the optimizer": ("optimizer", _moment("step")),
    "average": ("ema", None),
    "random states": ("rng", None),
    "Python's generator": ("rng", _of_now("python")),
    "NumPy's generator": ("rng", _of_now("numpy")),
    "torch's generator": ("rng", _of_now("torch")),
    "progress": ("progress", None),
    "position in the data": ("progress", _field("step")),
    "tokens seen": ("progress", _field("tokens_seen")),
    "plan": ("progress", _field("plan")),
    "guard": ("guard", None),
    "stage": ("stage", None),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with a budget of time that was stopped after its length was found, and its end."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        measured_steps(patch, STEPS)
        patch.setattr(crash_worker, "STEP_S", 0.0)
        config = timed_config()
        start(folder / "end", config)
        (folder / "half").mkdir()
        newest = f"step-{STEPS - SAVE_EVERY}"
        shutil.copytree(folder / "end" / CHECKPOINTS / newest, folder / "half" / newest)
        yield folder


def timed_config() -> Any:
    return run_config(budget="1h", validate_every=0)


def measured_steps(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the measurement of the pace say how many steps there are, whatever the clock says."""

    def plan(pace: Pace, step: int, seconds_used: float) -> int:
        pace.planned_s = seconds_used
        return steps

    patch.setattr(Pace, "is_due", lambda pace, seconds: pace.planned_s is None)
    patch.setattr(Pace, "plan", plan)


def resumed(stopped: Path, tmp_path: Path, patch: pytest.MonkeyPatch, steps: int) -> Path:
    """Go on in a copy of the stopped run; its length is measured as `steps` if it must be."""
    measured_steps(patch, steps)
    shutil.copytree(stopped / "half", tmp_path / "run" / CHECKPOINTS)
    (tmp_path / "run" / METRICS).touch()
    start(tmp_path / "run", timed_config())
    return tmp_path / "run"


def test_a_stopped_run_ends_as_it_would_have(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = final(resumed(stopped, tmp_path, monkeypatch, STEPS + 2)), final(stopped / "end")
    assert [name for name in theirs if ours[name] != theirs[name]] == ["metrics"]


@pytest.mark.parametrize("item", FORGOTTEN)
def test_each_item_that_is_forgotten_is_noticed(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: str
) -> None:
    name, forget = FORGOTTEN[item]
    item = STATE_ITEMS[name]
    broken = LeftOut(item) if forget is None else PartlyLeftOut(item, forget)
    monkeypatch.setitem(STATE_ITEMS, name, broken)
    folder = resumed(stopped, tmp_path, monkeypatch, STEPS + 2)
    ours, theirs = final(folder), final(stopped / "end")
    assert [key for key in theirs if ours[key] != theirs[key] and key != "metrics"] != []


def test_every_part_of_the_inventory_is_forgotten_once() -> None:
    # Adapters have a test of their own beside the state items: this model has none.
    assert {name for name, _ in FORGOTTEN.values()} == STATE_ITEMS.keys() - {"adapters"}
