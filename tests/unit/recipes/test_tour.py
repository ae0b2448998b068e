"""`recipes/tour.py`: every tiny preset is visited, and a broken model is found out."""

import json
from typing import get_args

import pytest
import torch

from ziphius.cli import run as run_module
from ziphius.cli.run import RunConfig, run
from ziphius.core.errors import OutputError
from ziphius.engine.load import load_preset
from ziphius.models.presets import PRESETS
from ziphius.models.weights import load
from ziphius.recipes import RECIPES
from ziphius.recipes.tour import check_absorbed, check_cache, check_saving, tour, visit

CPU = torch.device("cpu")


@pytest.fixture
def loaded():
    return load_preset("v3-tiny", device=CPU)


def test_visits_every_tiny_preset_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    reports = list(tour(None))
    assert {report.preset for report in reports} == {n for n in PRESETS if n.endswith("-tiny")}
    for report in reports:
        assert report.text
        assert all(check.passed for check in report.checks)
        names = [check.name for check in report.checks]
        latent = PRESETS[report.preset].attention == "mla"
        assert ("absorbed = expanded" in names) == latent
        assert {"cached = uncached", "saved = loaded"} <= set(names)
    assert list(tmp_path.iterdir()) == []


def test_a_visit_saves_a_model_that_loads(tmp_path):
    report = visit("coder-tiny", tmp_path / "model")
    parameters = sum(parameter.numel() for parameter in load(tmp_path / "model").parameters())
    assert parameters == report.account.parameters.main


def test_a_cache_that_forgets_is_found_out(loaded, monkeypatch):
    assert check_cache(loaded.model).passed
    monkeypatch.setattr("ziphius.models.cache.Cache.append", lambda cache, layer, *new: new)
    monkeypatch.setattr(
        "ziphius.models.attention.latent.LatentAttention.absorbed_is_cheaper",
        lambda *sizes: True,
    )
    assert not check_cache(loaded.model).passed


def test_forms_that_differ_are_found_out_in_any_layer(loaded, monkeypatch):
    assert check_absorbed(loaded.model).passed
    last = loaded.model.model.layers[-1].self_attn
    monkeypatch.setattr(last, "absorbed", lambda *inputs: last.expanded(*inputs) * 1.0001)
    assert not check_absorbed(loaded.model).passed


def test_a_weight_that_is_not_saved_is_found_out(loaded, tmp_path, monkeypatch):
    assert check_saving(loaded, tmp_path / "good").passed

    def load_damaged(*args, **kwargs):
        model = load(*args, **kwargs)
        model.model.layers[1].mlp.gate.weight.data[0, 0] += 0.5
        return model

    monkeypatch.setattr("ziphius.recipes.tour.load", load_damaged)
    assert not check_saving(loaded, tmp_path / "bad").passed


def test_nan_is_not_within_any_bound(loaded):
    loaded.model.model.norm.weight.data.fill_(torch.nan)
    assert not check_cache(loaded.model).passed


def test_the_command_knows_every_recipe():
    assert set(get_args(RunConfig.model_fields["recipe"].annotation)) == set(RECIPES)


@pytest.fixture
def short_tour(monkeypatch):
    kept = {"v3-tiny": PRESETS["v3-tiny"], "coder-tiny": PRESETS["coder-tiny"]}
    monkeypatch.setattr("ziphius.recipes.tour.PRESETS", kept)


def test_run_keeps_models_and_results_in_a_new_folder(short_tour, tmp_path, capsys):
    out = tmp_path / "out"
    run(RunConfig(out=out))
    assert {path.name for path in out.iterdir()} == {"v3-tiny", "coder-tiny", "tour.json"}
    result = json.loads((out / "tour.json").read_text())
    assert [family["preset"] for family in result["families"]] == ["v3-tiny", "coder-tiny"]
    assert result["families"][0]["random_weights"] is True
    shown = capsys.readouterr().out
    assert "not trained models" in shown
    assert "194,688" in shown
    with pytest.raises(OutputError):
        run(RunConfig(out=out))


def test_json_is_one_document(short_tour, capsys):
    run(RunConfig(as_json=True))
    result = json.loads(capsys.readouterr().out)
    checks = result["families"][0]["checks"]
    assert len(checks) == 3
    assert all(check["passed"] for check in checks)


def test_a_failed_check_gives_exit_code_1(short_tour, monkeypatch, capsys):
    monkeypatch.setattr("ziphius.recipes.tour.ROUNDING", -1.0)
    with pytest.raises(SystemExit) as exit_info:
        run_module.run(RunConfig())
    assert exit_info.value.code == 1
    assert "FAILED" in capsys.readouterr().out
