import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ziphius.data.batch import Batch
from ziphius.train.guard import Guard, GuardConfig, dump_step

CONFIG = GuardConfig(spike_window=20)


def test_a_jump_is_a_loss_far_above_those_before_it() -> None:
    guard = Guard(CONFIG)
    for step in range(10):
        assert guard.observe(step, 3.0 + 0.1 * (step % 2)) is None
    assert guard.observe(10, 3.34) is None  # mean 3.05, standard deviation 0.05
    assert guard.observe(11, 1.0) is None
    guard.window.clear()
    for step in range(10):
        guard.observe(step, 3.0 + 0.1 * (step % 2))
    assert guard.observe(10, 3.36) == pytest.approx(6.2)
    assert guard.spikes == [{"step": 10, "loss": 3.36, "sigma": pytest.approx(6.2)}]


def test_nothing_is_a_jump_before_half_the_window_is_known() -> None:
    guard = Guard(CONFIG)
    for step in range(9):
        guard.observe(step, 3.0)
    assert guard.observe(9, 1e9) is None


def test_a_flat_loss_does_not_make_noise_a_jump() -> None:
    guard = Guard(CONFIG)
    for step in range(20):
        guard.observe(step, 2.0 + 1e-9 * (step % 2))
    assert guard.observe(20, 2.001) is None
    guard = Guard(CONFIG)
    for step in range(20):
        guard.observe(step, 0.0)
    assert guard.observe(20, 0.1) is None


def test_old_losses_are_forgotten() -> None:
    guard = Guard(CONFIG)
    for step in range(60):
        guard.observe(step, float(step))
    assert list(guard.window) == [float(step) for step in range(40, 60)]


def test_a_guard_goes_on_from_its_state() -> None:
    guard, other = Guard(CONFIG), Guard(CONFIG)
    for step in range(15):
        guard.observe(step, math.sin(step) / 3 + (30.0 if step == 12 else 0.0))
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.spikes == guard.spikes != []
    assert other.window == guard.window
    assert other.observe(15, 99.0) == guard.observe(15, 99.0)
    assert len(other.window) == 16


def test_a_failed_step_is_kept_whole(tmp_path: Path) -> None:
    ids_BT = torch.arange(6).view(2, 3)
    batches = [
        Batch(ids_BT, torch.zeros_like(ids_BT)),
        Batch(ids_BT + 1, torch.ones_like(ids_BT), counted_BT=ids_BT > 2),
    ]
    report = {"step": 7, "rank": 0, "terms": {"next_token": math.nan}, "losses": [1.0, math.inf]}
    path = dump_step(tmp_path, batches, report)
    assert path == tmp_path / "failed-step-7"
    tensors = load_file(path / "batch.safetensors")
    assert sorted(tensors) == [
        "micro-0.documents",
        "micro-0.ids",
        "micro-1.counted",
        "micro-1.documents",
        "micro-1.ids",
    ]
    assert torch.equal(tensors["micro-1.ids"], ids_BT + 1)
    saved = json.loads((path / "report.json").read_text())
    assert saved["terms"] == {"next_token": "nan"}
    assert saved["losses"] == [1.0, "inf"]
    assert dump_step(tmp_path, batches, report).name == "failed-step-7-2"
    assert dump_step(tmp_path, batches, report | {"rank": 1}).name == "failed-step-7-rank-1"
