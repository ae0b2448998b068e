"""`ziphius run`: what it prints, keeps and returns."""

import json
from typing import get_args

import pytest
from pydantic import ValidationError

from ziphius.cli.run import RunConfig, run
from ziphius.core.errors import OutputError
from ziphius.models.presets import PRESETS
from ziphius.recipes import RECIPES
from ziphius.recipes.lengths import StageLengths


def test_the_command_knows_every_recipe():
    assert set(get_args(RunConfig.model_fields["recipe"].annotation)) == set(RECIPES)


@pytest.fixture
def short_tour(monkeypatch):
    kept = {"v3-tiny": PRESETS["v3-tiny"], "coder-tiny": PRESETS["coder-tiny"]}
    monkeypatch.setattr("ziphius.recipes.tour.PRESETS", kept)


def test_run_keeps_models_and_results_in_a_new_folder(short_tour, tmp_path, capsys):
    out = tmp_path / "out"
    run(RunConfig(recipe="tour", out=out))
    assert {path.name for path in out.iterdir()} == {"v3-tiny", "coder-tiny", "tour.json"}
    result = json.loads((out / "tour.json").read_text())
    assert [family["preset"] for family in result["families"]] == ["v3-tiny", "coder-tiny"]
    assert result["families"][0]["random_weights"] is True
    shown = capsys.readouterr().out
    assert "not trained models" in shown
    assert "194,688" in shown
    with pytest.raises(OutputError):
        run(RunConfig(recipe="tour", out=out))


def test_json_is_one_document(short_tour, capsys):
    run(RunConfig(recipe="tour", as_json=True))
    result = json.loads(capsys.readouterr().out)
    checks = result["families"][0]["checks"]
    assert len(checks) == 3
    assert all(check["passed"] for check in checks)


def test_a_failed_check_gives_exit_code_1(short_tour, monkeypatch, capsys):
    monkeypatch.setattr("ziphius.recipes.tour.ROUNDING", -1.0)
    with pytest.raises(SystemExit) as exit_info:
        run(RunConfig(recipe="tour"))
    assert exit_info.value.code == 1
    assert "FAILED" in capsys.readouterr().out


def test_brackets_in_the_folders_name_are_printed_as_they_are(short_tour, tmp_path, capsys):
    run(RunConfig(recipe="tour", out=tmp_path / "o[/p]"))
    assert f"Saved in {tmp_path / 'o[/p]'}" in capsys.readouterr().out


@pytest.mark.parametrize("setting", [{"budget": "3m"}, {"seed": 1}, {"dry_run": True}])
def test_settings_of_training_are_refused_on_the_tour(setting):
    with pytest.raises(ValidationError, match="no effect on the tour"):
        RunConfig(recipe="tour", **setting)


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(RunConfig(dry_run=True, as_json=True, budget="2m"))
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows][:5] == ["pretrain", "sft", "grpo", "more-sft", "rft"]
    assert rows[0]["length"].endswith(" steps")
    assert rows[3]["flops"] == rows[4]["flops"] == rows[2]["flops"]
    assert list(tmp_path.iterdir()) == []


def test_lengths_of_another_run_take_the_place_of_a_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lengths = StageLengths(pretrain=7, sft=9)
    document = {"budget": "15m", "lengths": lengths.model_dump()}
    (tmp_path / "lengths.json").write_text(json.dumps(document))
    run(RunConfig(dry_run=True, as_json=True, lengths=tmp_path / "lengths.json"))
    rows = json.loads(capsys.readouterr().out)
    assert [row["length"] for row in rows][:2] == ["7 steps", "9 steps"]
    with pytest.raises(ValidationError, match="budget has no effect with lengths"):
        RunConfig(budget="2m", lengths=tmp_path / "lengths.json")
