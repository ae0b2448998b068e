import json
from pathlib import Path

import pytest

from ziphius.train.records import (
    MetricsFile,
    Speed,
    max_vio,
    metrics_hash,
    read_metrics,
    step_line,
    validation_line,
)
from ziphius.train.seams import StepRecord, ValidationRecord


def step_record(step: int, **changes: object) -> StepRecord:
    fields = {
        "step": step,
        "loss": 1.0 / 3.0 + step,
        "terms": {"next_token": 2.0, "mtp1": 3.0},
        "tokens": 128,
        "seconds": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": 0.1,
        "grad_norm_by_part": {"attention": 0.06, "experts": 0.08},
        "counts_by_layer": {1: [3, 1, 0, 0]},
        "gate_entropy_by_layer": {1: 1.25},
        "progress": 0.1,
        "eta_s": 9.0,
        "bytes_count": 256,
    }
    return StepRecord(**(fields | changes))


def write(folder: Path, *steps: int, **changes: object) -> MetricsFile:
    metrics = MetricsFile(folder)
    for step in steps:
        metrics.write(step_line(step_record(step, **changes), Speed(256.0, 0.4)))
    return metrics


def test_a_step_is_written_at_once_with_its_exact_loss(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    [line] = read_metrics(tmp_path / "run")
    assert float.fromhex(line["loss_hex"]) == 1.0 / 3.0 + 1
    assert float.fromhex(line["grad_norm_hex"]) == 0.1
    assert line["terms"] == {"next_token": 2.0, "mtp1": 3.0}
    assert line["skipped"] is False
    assert line["expert_counts"] == {"1": [3, 1, 0, 0]}
    assert line["max_vio"] == {"1": 2.0}
    assert (line["tokens_per_s"], line["mfu"]) == (256.0, 0.4)


def test_max_vio_is_the_excess_of_the_busiest_over_the_mean() -> None:
    assert max_vio([5, 5, 5]) == 0.0
    assert max_vio([12, 0, 0]) == 2.0
    assert max_vio([0, 0]) == 0.0


def test_a_measurement_is_written_with_its_exact_figures(tmp_path: Path) -> None:
    MetricsFile(tmp_path).write(validation_line(ValidationRecord(7, {"loss": 0.1 + 0.2}, 2.0)))
    [line] = read_metrics(tmp_path)
    assert (line["kind"], line["step"]) == ("validation", 7)
    assert float.fromhex(line["exact"]["loss_hex"]) == 0.1 + 0.2


def test_a_resumed_run_writes_no_step_twice(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"step","step":1')  # torn by a crash
    metrics = MetricsFile(tmp_path)
    metrics.cut_after(2)
    metrics.write(step_line(step_record(3), Speed(1.0)))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert all(json.loads(line) for line in text.splitlines())


def test_the_hash_forgets_clocks_and_nothing_else(tmp_path: Path) -> None:
    for name, changes in {
        "a": {},
        "clock": {"seconds": 9.0, "eta_s": 1.0},
        "loss": {"loss": 0.3},
        "counts": {"counts_by_layer": {1: [2, 2, 0, 0]}},
    }.items():
        write(tmp_path / name, 1, **changes)
    hashes = {name: metrics_hash(tmp_path / name) for name in ("a", "clock", "loss", "counts")}
    assert hashes["a"] == hashes["clock"]
    assert len(set(hashes.values())) == 3


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_without_a_json_word_are_spelled(tmp_path: Path, value: float) -> None:
    write(tmp_path, 1, terms={"z": value})
    [line] = read_metrics(tmp_path)
    assert line["terms"] == {"z": str(value)}
