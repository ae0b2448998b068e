import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.examples import examples
from ziphius.train.schedules import (
    SCHEDULES,
    BatchSizeSchedule,
    LambdaSchedule,
    learning_rate_factor,
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_at_1_and_never_rise(name: str) -> None:
    factors = [SCHEDULES[name](index / 1_000) for index in range(1_001)]
    assert factors[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert factors[-1] > 0.0


@pytest.mark.parametrize(
    ("name", "progress", "factor"),
    [
        ("constant", 1.0, 1.0),
        ("cosine", 0.5, 0.55),
        ("cosine", 1.0, 0.1),
        ("v2", 0.59, 1.0),
        ("v2", 0.6, 0.316),
        ("v2", 0.9, 0.316**2),
        # DeepSeek-V3 report, section 4.2, by trillions of tokens
        ("v3", 9.99 / 14.8, 1.0),
        ("v3", (10.0 + 4.3 / 2) / 14.8, 0.55),
        ("v3", 14.31 / 14.8, 2.2e-5 / 2.2e-4),
        ("v3", 14.64 / 14.8, 7.3e-6 / 2.2e-4),
    ],
)
def test_schedules_follow_the_reports(name: str, progress: float, factor: float) -> None:
    assert SCHEDULES[name](progress) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "total", "factor"),
    [
        (0, 1_000, 0.1),
        (8, 1_000, 0.9),
        (9, 1_000, 1.0),
        (500, 1_000, 1.0),
        (0, 20, 0.5),  # a tenth of a short run
        (2, 20, 1.0),
        (0, 5, 1.0),
        (4, None, 0.5),
    ],
)
def test_the_rate_rises_first(step: int, total: int | None, factor: float) -> None:
    rate = learning_rate_factor(
        "constant", step=step, progress=0.0, warmup_steps=10, total_steps=total
    )
    assert rate == pytest.approx(factor)


def test_without_warm_up_the_rate_is_the_schedules() -> None:
    rate = learning_rate_factor("v2", step=0, progress=0.7, warmup_steps=0, total_steps=10)
    assert rate == 0.316


def test_a_batch_grows_in_strides_of_its_first_size() -> None:
    rows = BatchSizeSchedule(full=8, first=2, rampup_steps=9)
    assert [rows.count(step) for step in range(11)] == [2, 2, 2, 4, 4, 4, 6, 6, 6, 8, 8]
    assert rows(3) == range(6, 10)
    assert rows(10) == range(44, 52)


@examples(50)
@given(
    first=st.integers(1, 4),
    times=st.integers(1, 5),
    ramp=st.integers(0, 30),
    rows=st.integers(1, 500),
)
def test_rows_follow_without_a_gap_and_steps_are_counted(
    first: int, times: int, ramp: int, rows: int
) -> None:
    schedule = BatchSizeSchedule(first * times, first, ramp)
    ranges = [schedule(step) for step in range(40)]
    assert ranges[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
    steps = schedule.steps_for(rows)
    assert schedule.first_row(steps) >= rows
    assert steps == 1 or schedule.first_row(steps - 1) < rows


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, 0.3), (0.67, 0.3), (10 / 14.8, 0.1), (0.68, 0.1), (1.0, 0.1)]
)
def test_lambda_of_v3_falls_after_10_of_14_8_trillion_tokens(
    progress: float, weight: float
) -> None:
    assert LambdaSchedule().weight(progress) == weight


def test_lambda_schedule_is_a_choice() -> None:
    schedule = LambdaSchedule(early=1.0, late=0.0, switch=0.5)
    assert [schedule.weight(step / 4) for step in range(5)] == [1.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValidationError, match="switch"):
        LambdaSchedule(switch=1.5)
