import json
import math

import pytest

from ziphius.train.guard import Guard, GuardConfig

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
    guard.skipped_steps = 3
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.spikes == guard.spikes != []
    assert other.skipped_steps == 3
    assert other.window == guard.window
    assert other.observe(15, 99.0) == guard.observe(15, 99.0)
    assert len(other.window) == 16
