"""`recipes/tour.py`: every tiny preset is visited, and a broken model is found out."""

import pytest
import torch

from ziphius.engine.load import load_preset
from ziphius.models.presets import PRESETS
from ziphius.models.weights import load
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
    assert parameters == report.cost.parameters.main


def test_a_cache_that_forgets_is_found_out(loaded, monkeypatch):
    assert check_cache(loaded.model).passed
    monkeypatch.setattr("ziphius.models.cache.PagedCache.write", lambda *rows: None)
    assert not check_cache(loaded.model).passed


def test_forms_that_differ_are_found_out_in_any_layer(loaded, monkeypatch):
    assert check_absorbed(loaded.model).passed
    first = loaded.model.model.layers[0].self_attn
    monkeypatch.setattr(first, "absorbed", lambda *inputs: first.expanded(*inputs) * 1.0001)
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
