import json
from pathlib import Path

import pytest

from ziphius.cli.main import main


def test_text_becomes_a_model_and_the_same_command_does_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The whale dives {n} metres deep.\n" for n in range(2_000)))
    run = tmp_path / "run"
    command = f"pretrain --preset v3-tiny --data {text} --data.processes 0 --budget 2-steps"
    command += f" --train.seq-len 32 --train.validate-rows 2 --device cpu --out {run} --json"
    assert main(command.split()) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["step"], first["is_complete"]) == (2, True)
    assert Path(first["checkpoint"]) == run / "checkpoints" / "step-2"
    assert main(command.split()) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["checkpoint"], again["seconds"]) == (first["checkpoint"], first["seconds"])
    assert main([*command.split(), "--seed", "1"]) == 2
    assert "train.seed was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--data", "nowhere.txt"), "nowhere.txt"),
        (("--preset", "v9"), "v9"),
        (("--preset", "v3-tiny", "--train.seq-len", "4096"), "the model is made for 2048 tokens"),
        (("--from", "nowhere"), "nowhere"),
    ],
)
def test_settings_that_cannot_work_claim_no_folder(
    options: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "cache"))
    if "--preset" not in options and "--from" not in options:
        options = ("--preset", "v3-tiny", *options)
    run = tmp_path / "run"
    line = ["pretrain", "--budget", "2-steps", "--device", "cpu", "--out", str(run), *options]
    assert main(line) == 2
    assert problem in capsys.readouterr().err
    assert not run.exists()
