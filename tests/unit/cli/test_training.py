import json
from pathlib import Path

import pytest
from rich.console import Console

from ziphius.cli.pretrain import PretrainConfig
from ziphius.cli.training import claim_folder, refuse_folder, report, settle
from ziphius.core.errors import ConfigError, OutputError
from ziphius.train.errors import TrainingError
from ziphius.train.instruments import Figures, Speed
from ziphius.train.lock import locked
from ziphius.train.result import TrainResult


def options(folder: Path, **changes) -> PretrainConfig:
    train = {"seed": changes.pop("seed", 0), "budget": changes.pop("budget", "10m")}
    return PretrainConfig(out=folder, train=train, **changes)


def test_a_run_writes_all_its_settings_and_the_versions(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim_folder(options(folder, seed=3), folder)
    document = json.loads((folder / "config.json").read_text())
    assert set(document["versions"]) == {"ziphius", "torch"}
    settings = document["settings"]
    assert settings["train"]["seed"] == 3
    assert settings["train"]["optimizer"]["name"] == "adamw"
    assert settings["data"]["mix"] == "v2"
    assert not {"out", "resume", "config", "fresh", "as_json"} & set(settings)


def test_a_run_is_started_again_from_its_settings(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    claim_folder(options(first, seed=3), first)
    for again, folder in (
        (PretrainConfig(config=first / "config.json", out=second), second),
        (PretrainConfig(resume=first), first),
    ):
        settings, found = settle(again)
        assert found == folder
        assert settings.train.seed == 3
    quiet = PretrainConfig(resume=first, instruments={"quiet": True}, as_json=True)
    settings, _ = settle(quiet)
    assert settings.instruments.quiet
    assert settings.as_json


def test_what_changes_no_number_may_be_given_with_resume(tmp_path: Path) -> None:
    claim_folder(options(tmp_path, seed=3, budget="5m"), tmp_path)
    train = {"budget": "20m", "save_every": "1m"}
    settings, _ = settle(PretrainConfig(resume=tmp_path, train=train))
    assert (settings.train.budget, settings.train.save_every) == ("20m", "1m")
    assert settings.train.seed == 3
    settings, _ = settle(PretrainConfig(resume=tmp_path))
    assert settings.train.budget == "5m"
    with pytest.raises(ConfigError, match=r"train.seed: no effect with resume"):
        settle(PretrainConfig(resume=tmp_path, train={"seed": 4, "budget": "20m"}))


def test_the_same_settings_go_on_and_others_are_refused(tmp_path: Path) -> None:
    claim_folder(options(tmp_path), tmp_path)
    claim_folder(options(tmp_path), tmp_path)
    claim_folder(options(tmp_path, budget="20m", instruments={"quiet": True}), tmp_path)
    with pytest.raises(ConfigError, match=r"train.seed was 0 and is 3.* --fresh"):
        claim_folder(options(tmp_path, seed=3), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    assert (settings["train"]["seed"], settings["train"]["budget"]) == (0, "20m")


def test_an_old_run_is_moved_aside_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for seed in (1, 2, 3):
        claim_folder(options(folder, seed=seed, fresh=True), folder)
    seeds = {
        path.name: json.loads((path / "config.json").read_text())["settings"]["train"]["seed"]
        for path in tmp_path.iterdir()
    }
    assert seeds == {"run": 3, "run.old-1": 1, "run.old-2": 2}
    assert str(tmp_path / "run.old-2") in capsys.readouterr().err


def test_what_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    for fresh in (False, True):
        with pytest.raises(OutputError, match="is not empty"):
            claim_folder(options(tmp_path, fresh=fresh), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_is_looked_at_without_being_claimed(tmp_path: Path) -> None:
    new, run = tmp_path / "new", tmp_path / "run"
    refuse_folder(options(new), new)
    assert list(tmp_path.iterdir()) == []
    claim_folder(options(run), run)
    before = (run / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"train.seed was 0 and is 3"):
        refuse_folder(options(run, seed=3), run)
    refuse_folder(options(run, seed=3, fresh=True), run)
    assert (run / "config.json").read_text() == before
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(OutputError, match=r"letter.txt is no folder that you may write to"):
        refuse_folder(options(tmp_path), tmp_path / "letter.txt" / "run")


def test_a_folder_in_use_is_left_to_its_run(tmp_path: Path) -> None:
    claim_folder(options(tmp_path), tmp_path)
    with locked(tmp_path), pytest.raises(TrainingError, match="in use by process"):
        claim_folder(options(tmp_path, fresh=True), tmp_path)


def test_a_run_killed_before_its_first_file_starts_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    claim_folder(options(tmp_path), tmp_path)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Give --out, the folder of the run"),
        ({"resume": "a", "config": "b"}, "resume and config: give one of them"),
        ({"resume": "a", "out": "b"}, "out and fresh have no effect with resume"),
        ({"resume": "a", "fresh": True}, "out and fresh have no effect with resume"),
        ({"resume": "a", "preset": "v2-1m"}, "preset: no effect with resume"),
        ({"config": "a", "out": "b", "data": {"mix": "r1"}}, "data.mix: no effect with config"),
        ({"resume": "nowhere"}, r"nowhere/config.json cannot be read: No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(PretrainConfig(**given))


def test_settings_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"settings": {"train": {"seed": -1}}}))
    with pytest.raises(ConfigError, match=r"config.json: train.seed"):
        settle(PretrainConfig(config=path, out=tmp_path))
    path.write_text(json.dumps({"model_type": "deepseek_v3"}))
    with pytest.raises(ConfigError, match="holds no settings"):
        settle(PretrainConfig(config=path, out=tmp_path))


@pytest.mark.parametrize(("stopped_by", "code"), [(None, None), (2, 130), (15, 143)])
def test_the_end_of_a_run_is_shown_and_a_signal_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped_by: int | None, code: int | None
) -> None:
    result = TrainResult(
        "pretrain", tmp_path, tmp_path / "step-7", 7, 9, 100, 1.0, 2.5, stopped_by=stopped_by
    )
    figures = Figures(speed=Speed(10.0, None))
    found = None
    try:
        report(result, figures, Console(stderr=True), name="pretrain", as_json=True)
    except SystemExit as error:
        found = error.code
    assert found == code
    shown = capsys.readouterr()
    assert json.loads(shown.out)["step"] == 7
    assert json.loads((tmp_path / "result.json").read_text())["stopped_by"] == stopped_by
    assert (f"ziphius pretrain --resume {tmp_path}" in shown.err) == (stopped_by is not None)


def test_a_run_of_another_command_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"chat_format": None}}))
    with pytest.raises(ConfigError, match=r"another command's run: chat_format is no setting"):
        settle(PretrainConfig(resume=tmp_path))
