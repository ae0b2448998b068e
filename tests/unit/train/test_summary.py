import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ziphius.train.instruments import Figures
from ziphius.train.records import Speed
from ziphius.train.result import TrainResult
from ziphius.train.summary import result_document, summary_table, verdict, write_result

BASELINES = {"uniform": 8.3, "unigram": 6.0, "bigram": 4.0}
FIGURES = Figures(Speed(1_234.0, 0.31), {1: 0.12, 2: 0.34}, steps_of_load=100)


def result(folder: Path = Path("run"), **changes: object) -> TrainResult:
    fields = {
        "stage": "pretrain",
        "folder": folder,
        "checkpoint": folder / "checkpoints" / "step-10",
        "step": 10,
        "total_steps": 20,
        "tokens": 20_480,
        "seconds": 61.0,
        "loss": 3.25,
        "validation_step": 10,
        "validation": {"loss": 3.5, "bits_per_byte": 1.5, "bits_per_byte/code": 1.25, "mtp1": 5.0},
        "baselines": BASELINES,
    }
    return TrainResult(**(fields | changes))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3.5, "0.5000 below the bigram baseline of 4.0000"),
        (4.0, "does not beat the bigram baseline: its loss on held-out text is 4.0000"),
        (9.0, "does not beat the bigram baseline"),
    ],
)
def test_the_verdict_is_honest(loss: float, words: str) -> None:
    assert words in verdict(result(validation={"loss": loss}))


def test_a_run_that_ends_worse_than_it_began_says_so_first() -> None:
    worse = result(validation={"loss": 2.82}, validation_at_start={"loss": 1.99})
    assert verdict(worse).startswith("The run ends worse than it began: the loss on held-out text")
    assert "1.9900 and is 2.8200" in verdict(worse)
    better = result(validation={"loss": 1.98}, validation_at_start={"loss": 1.99})
    assert "below the bigram baseline" in verdict(better)


def test_a_model_that_was_not_measured_is_not_judged() -> None:
    stopped = result(validation={"loss": 8.3}, validation_step=0, step=9)
    assert verdict(stopped).startswith("Stopped at step 9: held-out text was measured last at step")
    assert result_document(stopped, FIGURES)["beats_bigram"] is None
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table(stopped, FIGURES))
    assert "loss on held-out text at step 0" in console.file.getvalue()


def test_the_verdict_says_what_was_not_measured() -> None:
    assert "Nothing was measured on held-out text" in verdict(result(validation={}))
    assert "no baseline was measured" in verdict(result(baselines={}))


def test_the_table_shows_losses_beside_baselines() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table(result(spikes=[{"step": 3}], skipped_steps=2), FIGURES))
    text = console.file.getvalue()
    assert "pretrain: 10 of 20 steps, 20,480 tokens, 1:01" in text
    rows = dict(_cells(line) for line in text.splitlines() if line.startswith("\u2502"))
    assert rows == {
        "loss of the last step": "3.2500",
        "loss on held-out text": "3.5000",
        "baseline: ln(vocabulary)": "8.3000",
        "baseline: unigram": "6.0000",
        "baseline: bigram": "4.0000",
        "MTP depth 1": "5.0000",
        "bits per byte": "1.5000",
        "bits per byte: code": "1.2500",
        "MaxVio by layer, last 100 steps": "0.12, 0.34",
        "tokens/s": "1,234",
        "MFU, of the measured matrix peak": "31.0 %",
        "jumps of the loss": "1",
        "steps with nothing to learn": "2",
        "model": "run/checkpoints/step-10",
    }


def _cells(line: str) -> tuple[str, str]:
    _, name, value, _ = (cell.strip() for cell in line.split("\u2502"))
    return name, value


def test_a_start_without_steps_tells_of_the_run(tmp_path: Path) -> None:
    figures = Figures(Speed(1.0), loss=2.5)
    path = write_result(result(tmp_path, loss=None), figures)
    assert json.loads(path.read_text())["loss"] == 2.5
    assert json.loads(write_result(result(tmp_path), figures).read_text())["loss"] == 3.25


@pytest.mark.parametrize(("loss", "beats"), [(3.5, True), (4.5, False), (None, None)])
def test_programs_get_the_same(tmp_path: Path, loss: float | None, beats: bool | None) -> None:
    validation = {} if loss is None else {"loss": loss}
    path = write_result(result(tmp_path, validation=validation, skipped_steps=2), FIGURES)
    document = json.loads(path.read_text())
    assert path == tmp_path / "result.json"
    assert document["beats_bigram"] is beats
    assert document["baselines"] == BASELINES
    assert document["max_vio_by_layer"] == {"1": 0.12, "2": 0.34}
    assert (document["tokens_per_s"], document["mfu"]) == (1_234.0, 0.31)
    assert document["is_complete"] is False
    assert document["skipped_steps"] == 2
