import pytest

from ziphius.train.budget import parse_budget
from ziphius.train.config import TrainConfig
from ziphius.train.plan import Pace, planned_steps, progress
from ziphius.train.schedules import BatchSizeSchedule

ROWS = BatchSizeSchedule(full=8, first=8, rampup_steps=0)
RAMP = BatchSizeSchedule(full=8, first=2, rampup_steps=9)


@pytest.mark.parametrize(
    ("budget", "rows", "steps"),
    [
        ("500-steps", ROWS, 500),
        ("2048-tokens", ROWS, 4),  # 8 rows of 64
        ("2049-tokens", ROWS, 5),
        ("1-tokens", ROWS, 1),
        ("2304-tokens", RAMP, 9),  # 36 rows
        ("2305-tokens", RAMP, 10),
        ("10m", ROWS, None),
    ],
)
def test_tokens_and_steps_are_known_at_once(
    budget: str, rows: BatchSizeSchedule, steps: int | None
) -> None:
    assert planned_steps(parse_budget(budget), rows, seq_len=64) == steps


def test_progress_counts_rows() -> None:
    assert progress(ROWS, 3, 12) == 0.25
    assert progress(RAMP, 9, 18) == 36 / (36 + 72)
    assert progress(ROWS, 3, None) == 0.0


def pace(budget_s: float, **fields: int) -> Pace:
    return Pace(TrainConfig(global_batch_size=8, **fields), budget_s)


def test_twenty_steps_are_measured_and_the_first_two_left_out() -> None:
    measured = pace(100.0, validate_every=0)
    for step in range(20):
        assert not measured.is_due(0.5 * step)
        measured.observe(step, 9.0 if step < 2 else 0.5)
    assert measured.is_due(10.0)
    assert measured.plan(20, 27.0) == 20 + int(73.0 / 0.5)


def test_slow_steps_are_measured_for_a_tenth_of_the_time() -> None:
    measured = pace(100.0, validate_every=0)
    measured.observe(0, 30.0)
    assert not measured.is_due(30.0)
    measured.observe(1, 30.0)
    assert measured.is_due(60.0)
    assert measured.plan(2, 60.0) == 3


def test_a_budget_that_is_used_up_ends_the_run() -> None:
    measured = pace(100.0, validate_every=0)
    for step in range(2):
        measured.observe(step, 60.0)
    assert measured.plan(2, 120.0) == 2


def test_the_number_of_steps_follows_a_machine_that_slows_down() -> None:
    measured = pace(100.0, validate_every=0)
    for step in range(20):
        measured.observe(step, 0.5)
    assert measured.plan(20, 10.0) == 200
    for step in range(20, 25):
        assert not measured.is_due(10.0 + 2.0 * (step - 20))
        measured.observe(step, 2.0)
    assert measured.is_due(20.0)
    assert measured.plan(25, 20.0) == 25 + 40
    assert not measured.is_due(29.0)


def test_a_resumed_run_is_not_planned_by_its_first_steps() -> None:
    measured = pace(100.0, validate_every=0)
    measured.planned_s = 40.0
    for step, seconds in enumerate((9.0, 9.0, 0.5)):
        assert not measured.is_due(60.0)
        measured.observe(step, seconds)
    measured.observe(3, 0.5)
    assert not measured.is_due(49.0)
    assert measured.is_due(60.0)
    assert measured.plan(30, 60.0) == 30 + 80


def test_measurements_on_held_out_text_fit_in() -> None:
    measured = pace(1_000.0, validate_every=10)
    measured.validation_s = 5.0
    measured.observe(0, 0.5)
    measured.observe(1, 0.5)
    # each step costs a tenth of a measurement besides, and one more comes at the end
    assert measured.plan(2, 6.0) == 2 + int((1_000.0 - 6.0 - 5.0) / 1.0)


def test_the_time_left_follows_the_last_steps() -> None:
    measured = pace(100.0)
    assert measured.eta_s(0, None, 10.0) == 90.0
    for step in range(40):
        measured.observe(step, 9.0 if step < 20 else 0.5)
    assert measured.eta_s(40, 100, 0.0) == pytest.approx(30.0)
