import io
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from tests.tiny import V3_EXPERTS, latent_config
from tests.unit.train.test_records import step_record
from ziphius.models.cost import model_cost
from ziphius.train import instruments as module
from ziphius.train.instruments import Effort, Instruments, measured_effort
from ziphius.train.instruments_config import InstrumentsConfig
from ziphius.train.records import read_metrics
from ziphius.train.seams import ValidationRecord

QUIET = InstrumentsConfig(quiet=True, tensorboard=False)


def instruments(folder: Path, config: InstrumentsConfig = QUIET, **options: object) -> Instruments:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    return Instruments(folder, config, console=console, **options)


def shown(instruments: Instruments) -> str:
    file = instruments.line.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_run_is_written_down_and_shown(tmp_path: Path) -> None:
    config = InstrumentsConfig(tensorboard=False)
    found = instruments(
        tmp_path, config, baselines={"bigram": 4.0}, effort=Effort(1_000, peak_flops_per_s=512_000)
    )
    found.step(step_record(1))
    found.validation(ValidationRecord(1, {"loss": 5.0, "bits_per_byte": 2.5}, 0.1))
    found.warn("careful")
    found.close()
    assert [line["kind"] for line in read_metrics(tmp_path)] == ["step", "validation"]
    assert "loss 1.3333 (bigram 4.00)  256 tokens/s  MFU 50 %" in shown(found)
    assert "held out: loss 5.0000, bits per byte 2.5000" in shown(found)
    assert found.figures.warnings == ["careful"]


def test_a_resumed_run_forgets_what_was_after_the_checkpoint(tmp_path: Path) -> None:
    first = instruments(tmp_path)
    for step in (1, 2, 3):
        first.step(step_record(step))
    first.close()
    second = instruments(tmp_path)
    second.resumed(1, "no because torch was 2.12")
    second.step(step_record(2))
    second.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert "Going on from step 1. exact: no because torch was 2.12" in shown(second)
    assert second.figures.exact == "no because torch was 2.12"


def test_a_start_without_steps_still_knows_the_run(tmp_path: Path) -> None:
    first = instruments(tmp_path)
    for step in (1, 2, 3):
        first.step(step_record(step, counts_by_layer={1: [step, 1]}))
    second = instruments(tmp_path)
    second.resumed(2, "yes")
    assert second.figures.loss == step_record(2).loss
    assert second.figures.max_vio_by_layer == {1: pytest.approx(0.2)}
    assert second.figures.steps_of_load == 2
    assert second.speed.tokens_per_s == 256.0


def test_a_run_that_died_before_its_first_checkpoint_starts_its_records_anew(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        found = instruments(tmp_path)
        found.validation(ValidationRecord(0, {"loss": 5.0}, 0.1))
        found.step(step_record(1))
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


def test_a_start_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    instruments(tmp_path / "run", InstrumentsConfig(quiet=True)).close()
    assert not (tmp_path / "run").exists()


def test_speed_is_that_of_the_last_steps(tmp_path: Path) -> None:
    found = instruments(tmp_path, effort=Effort(10, peak_flops_per_s=10_000.0))
    found.step(step_record(1, tokens=1, seconds=100.0))
    for step in range(2, 2 + module.SPEED_STEPS):
        found.step(step_record(step, tokens=100, seconds=0.25))
    assert found.speed.tokens_per_s == pytest.approx(400.0)
    assert found.speed.mfu == pytest.approx(0.4)


def test_load_is_summed_over_steps_before_it_is_judged(tmp_path: Path) -> None:
    found = instruments(tmp_path)
    found.step(step_record(1, counts_by_layer={1: [4, 0], 2: [3, 1]}))
    found.step(step_record(2, counts_by_layer={1: [0, 4], 2: [3, 1]}))
    assert found.figures.max_vio_by_layer == {1: 0.0, 2: 0.5}
    assert found.figures.steps_of_load == 2


def test_effort_is_that_of_the_cost_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matrix_peak", lambda device, dtype: 1e9)
    config = latent_config(**V3_EXPERTS, num_nextn_predict_layers=1)
    cpu = torch.device("cpu")
    effort = measured_effort(config, seq_len=64, device=cpu, dtype=torch.float32)
    flops = model_cost(config, context=64).flops
    assert effort == Effort(flops.training + flops.training_mtp, 1e9)
    assert flops.training_mtp > 0
    two = measured_effort(config, seq_len=64, device=cpu, dtype=torch.bfloat16, processes=2)
    assert two.peak_flops_per_s == 2e9


def test_missing_tensorboard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_tensorboard", lambda: False)
    found = instruments(tmp_path, InstrumentsConfig())
    assert found.curves == []
    assert "pip install tensorboard" in shown(found)


def test_curves_get_every_step_and_measurement(tmp_path: Path) -> None:
    found = instruments(tmp_path, InstrumentsConfig(quiet=True))
    found.step(step_record(1))
    found.validation(ValidationRecord(1, {"loss": 5.0}, 0.1))
    found.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"max_vio/layer 1" in content
    assert b"validation/loss" in content


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="wandb_offline has no effect"):
        InstrumentsConfig(wandb_offline=True)
