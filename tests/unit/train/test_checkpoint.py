import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import build, grouped_config
from tests.training import RandomRows, train_config
from ziphius.core.errors import OutputError
from ziphius.dist.world import World
from ziphius.train import checkpoint as checkpoints
from ziphius.train.checkpoint import CHECKPOINTS, CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.guard import Guard
from ziphius.train.manifest import MANIFEST_FILE
from ziphius.train.optim import build_optimizer
from ziphius.train.rng import seed_generators
from ziphius.train.seams import TrainState
from ziphius.train.stages.pretrain import Pretrain

CONFIG = train_config()
MODEL = build(grouped_config(num_hidden_layers=1))


def state_at(step: int, loss: float | None = None, config: TrainConfig = CONFIG) -> TrainState:
    """A state whose only difference to others is how far it is."""
    stage = Pretrain(RandomRows(config), MODEL.config, config)
    optimizer = build_optimizer(MODEL, config.optimizer)
    state = TrainState(MODEL, optimizer, None, stage, Guard(config.guard), step=step)
    state.plan["budget"] = config.budget
    state.validation = {} if loss is None else {"loss": loss}
    return state


class Store(CheckpointStore):
    """A store that keeps its warnings."""

    def __init__(self, folder: Path, config: TrainConfig = CONFIG, **options: Any) -> None:
        self.warnings: list[str] = []
        super().__init__(folder, config, warn=self.warnings.append, **options)

    def save(self, step: int, loss: float | None = None) -> Path:
        self.save_async(state_at(step, loss))
        return self.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def cut(folder: Path, name: str = "model.safetensors") -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-5])


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert Store(tmp_path / "new").latest() is None
    (tmp_path / CHECKPOINTS / "notes").mkdir(parents=True)
    (tmp_path / CHECKPOINTS / "step-last").mkdir()
    assert Store(tmp_path).latest() is None


def test_the_newest_is_taken_by_number_not_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(9)
    assert store.save(10) == tmp_path / CHECKPOINTS / "step-10"
    state = state_at(0)
    assert Store(tmp_path).restore(state, store.wait()) == "yes"
    assert state.step == 10


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, train_config(keep_last=2))
    for step, loss in [(1, None), (2, 5.0), (3, 4.0), (4, 4.0), (5, 6.0), (6, 6.0)]:
        store.save(step, loss)
    # Of 3 and 4, which share one measurement, the first is the one that was measured.
    assert names(tmp_path) == ["step-3", "step-5", "step-6"]
    store.save(7, 3.0)
    assert names(tmp_path) == ["step-6", "step-7"]


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    store = Store(tmp_path, train_config(keep_last=1))
    for step, loss in [(1, float("nan")), (2, 5.0), (3, float("nan")), (4, 6.0)]:
        store.save(step, loss)
    assert names(tmp_path) == ["step-2", "step-4"]


def test_a_damaged_one_is_told_of_and_the_one_before_taken(tmp_path: Path) -> None:
    Store(tmp_path).save(1)
    cut(Store(tmp_path).save(2))
    store = Store(tmp_path)
    assert store.latest() == tmp_path / CHECKPOINTS / "step-1"
    (warning,) = store.warnings
    assert "step-2: model.safetensors has" in warning
    assert "Going on from step-1" in warning
    other_rank = Store(tmp_path, world=World(1, 2))
    assert other_rank.latest() == store.latest()
    assert other_rank.warnings == []


def test_one_that_the_first_rank_takes_away_meanwhile_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = checkpoints.check_folder
    Store(tmp_path).save(1)

    def check_too_late(folder: Path) -> Any:
        shutil.rmtree(folder)
        return check(folder)

    monkeypatch.setattr(checkpoints, "check_folder", check_too_late)
    assert Store(tmp_path, world=World(1, 2)).latest() is None


def test_a_damage_is_told_once(tmp_path: Path) -> None:
    Store(tmp_path).save(1)
    cut(Store(tmp_path).save(2))
    store = Store(tmp_path)
    for _ in range(3):
        store.latest()
    assert len(store.warnings) == 1


def test_where_all_are_damaged_nothing_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2):
        cut(store.save(step), "config.json" if step == 1 else MANIFEST_FILE)
    before = names(tmp_path)
    with pytest.raises(TrainingError, match=r"No checkpoint in .* is whole \(step-2: MANI.*step-1"):
        Store(tmp_path).latest()
    assert names(tmp_path) == before


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    first = Store(tmp_path, train_config(keep_last=3))
    first.save(1)
    first.save(2)
    cut(first.save(3))
    again = Store(tmp_path, train_config(keep_last=1))
    again.save(2)
    assert names(tmp_path) == ["step-2", "step-3"], "a damaged one must not count as the last"
    assert again.save(3) == tmp_path / CHECKPOINTS / "step-3"
    assert len(again.warnings) == 1  # from before it was replaced
    assert names(tmp_path) == ["step-3"]


def test_a_whole_one_of_the_same_step_stays(tmp_path: Path) -> None:
    first = Store(tmp_path).save(1)
    before = first.stat().st_ino
    assert Store(tmp_path).save(1).stat().st_ino == before


def test_what_killed_runs_left_is_removed_under_the_lock(tmp_path: Path) -> None:
    Store(tmp_path).save(1)
    left = [".step-2.17-abcd.tmp", "..step-2.17-abcd.tmp.17-abce.tmp", ".trash-.step-0.17-a.tmp"]
    for name in left:
        (tmp_path / CHECKPOINTS / name / "training").mkdir(parents=True)
    store = Store(tmp_path)
    assert store.latest() == tmp_path / CHECKPOINTS / "step-1"
    assert set(left) < set(names(tmp_path))
    with store.lock():
        assert names(tmp_path) == ["step-1"]
        with pytest.raises(TrainingError, match="is in use by process"), Store(tmp_path).lock():
            pass


def failing(code: int) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_warns_and_the_next_save_is_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = Store(tmp_path)
    store.save(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(code))
        store.save_async(state_at(2))
        assert store.latest() == tmp_path / CHECKPOINTS / "step-1"
        (warning,) = store.warnings
        assert os.strerror(code) in warning
        assert "The training goes on" in warning
        store.save_async(state_at(3))
        with pytest.raises(OutputError, match=rf"{os.strerror(code)}.*has: step-1\. Make room"):
            store.wait()
    assert names(tmp_path) == ["step-1"]
    assert store.save(4) == tmp_path / CHECKPOINTS / "step-4"
    assert len(store.warnings) == 1


def test_a_bug_in_the_thread_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoints.states, "write", broken)
    store = Store(tmp_path)
    store.save_async(state_at(1))
    with pytest.raises(ZeroDivisionError):
        store.save_async(state_at(2))
    assert names(tmp_path) == []


def test_old_ones_that_cannot_be_removed_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, train_config(keep_last=1))
    store.save(1)

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(checkpoints, "_discard", refuse)
    assert store.save(2) == tmp_path / CHECKPOINTS / "step-2"
    assert store.warnings[0].startswith("Old checkpoints could not be removed")


class SlowDisk:
    """Holds the writing thread until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.go_on = checkpoints.states.write, threading.Event()
        self.running = self.most = 0
        monkeypatch.setattr(checkpoints.states, "write", self)

    def __call__(self, *arguments: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.go_on.wait(60)
        self.write(*arguments)
        self.running -= 1


def test_the_run_goes_on_while_its_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    store = Store(tmp_path)
    state = state_at(1)
    store.save_async(state)
    state.step = 77
    disk.go_on.set()
    assert store.wait().name == "step-1"
    state.step = 0
    assert Store(tmp_path).restore(state, store.wait()) == "yes"
    assert state.step == 1


def test_one_is_written_at_a_time_and_the_lock_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    store = Store(tmp_path)
    with store.lock():
        store.save_async(state_at(1))
        threading.Timer(0.2, disk.go_on.set).start()
        store.save_async(state_at(2))
        assert "step-1" in names(tmp_path)
    assert names(tmp_path) == ["step-1", "step-2"]
    assert disk.most == 1


def test_a_failure_after_the_end_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    with store.lock():
        monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
        store.save_async(state_at(1))
    assert store.warnings == []
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learning_rate": 0.1}, "no because train.learning_rate was None and is 0.1"),
        ({"budget": "20-steps"}, "no because budget was '10-steps' and is '20-steps'"),
        ({"deterministic": False}, "no because train.deterministic was True and is False; determ"),
        ({"workers": 7, "save_every": "9s"}, "yes"),
    ],
)
def test_a_resume_says_whether_it_is_exact(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = Store(tmp_path).save(5)
    config = train_config(**changes)
    state = state_at(0, config=config)
    assert Store(tmp_path, config).restore(state, path).startswith(reason)
    assert state.step == 5


def test_a_resume_that_must_be_exact_is_refused_before_anything_changes(tmp_path: Path) -> None:
    path = Store(tmp_path).save(5)
    config = train_config(learning_rate=0.1)
    state = state_at(0, config=config)
    with pytest.raises(TrainingError, match=r"not go on exactly, because train\.learning_rate"):
        Store(tmp_path, config, require_exact=True).restore(state, path)
    assert state.step == 0
    assert Store(tmp_path, require_exact=True).restore(state_at(0), path) == "yes"


def test_random_numbers_of_other_processes_are_missed_only_if_any_were_drawn(
    tmp_path: Path,
) -> None:
    two = World(0, 2)
    quiet = Store(tmp_path / "quiet", world=two)
    seed_generators(5)  # a run does so before it looks for its checkpoint
    assert quiet.latest() is None
    assert Store(tmp_path / "quiet", world=two).restore(state_at(0), quiet.save(1)) == "yes"
    drawing = Store(tmp_path / "drawing", world=two)
    assert drawing.latest() is None
    random.random()
    path = drawing.save(1)
    later = Store(tmp_path / "drawing", world=two)
    exact = later.restore(state_at(0), path)
    assert exact.startswith("no because random numbers were drawn")
    assert later.restore(state_at(0), later.save(2)) == exact, "drawn before the last start"
    alone = Store(tmp_path / "alone")
    assert alone.latest() is None
    random.random()
    assert alone.restore(state_at(0), alone.save(1)) == "yes"


def test_the_weights_are_those_of_the_moment(tmp_path: Path) -> None:
    weight = MODEL.model.norm.weight
    held = weight.detach().clone()
    path = Store(tmp_path).save(1)
    try:
        with torch.no_grad():
            weight.add_(1.0)
        Store(tmp_path).restore(state_at(0), path)
        assert torch.equal(weight, held)
    finally:
        weight.data.copy_(held)
