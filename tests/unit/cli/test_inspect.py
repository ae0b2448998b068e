import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import build, grouped_config
from tests.unit.models.weights.files import write_gguf
from ziphius.cli.inspect import InspectConfig, inspect
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.models.cost import model_cost
from ziphius.models.presets import PRESETS, get_preset
from ziphius.models.published import to_published


def output(capsys: pytest.CaptureFixture[str], config: InspectConfig) -> str:
    inspect(config)
    return capsys.readouterr().out


def test_v3_shows_its_published_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = output(capsys, InspectConfig(model="v3"))
    for words in (
        "671,026,404,352",
        "671.03 B",
        "37.55 B",
        "11,610,067,968",
        "250.46 GFLOP",
        "70,272 B",
        "61: 3 dense, 58 with experts; 1 for MTP",
        "8 of 256 from 4 of 8 groups, 1 shared",
        "yarn x 40",
    ):
        assert words in text, words


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_inspected(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, InspectConfig(model=name))
    assert f"{model_cost(get_preset(name), context=1).parameters.main:,}" in text


def test_json_carries_the_whole_cost(capsys: pytest.CaptureFixture[str]) -> None:
    config = InspectConfig(model="v3-tiny", batch=2, context=64, dtype="float32", as_json=True)
    data = json.loads(output(capsys, config))
    expected = model_cost(get_preset("v3-tiny"), batch=2, context=64, dtype="float32")
    assert data["parameters"]["main"] == expected.parameters.main
    assert data["memory"]["train"] == expected.memory.train
    assert data["cache_bytes"]["own"] == expected.cache_bytes.own
    assert (data["batch"], data["context"], data["dtype"]) == (2, 64, "float32")
    assert data["config"]["kv_lora_rank"] == 32


def test_the_default_context_is_what_the_model_reaches(capsys: pytest.CaptureFixture[str]) -> None:
    for name, context in (("v3-tiny", 2048), ("v3", 4096)):
        data = json.loads(output(capsys, InspectConfig(model=name, as_json=True)))
        assert data["context"] == context


def test_a_folder_is_inspected_without_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_published(get_preset("v2-lite"))))
    data = json.loads(output(capsys, InspectConfig(model=str(tmp_path), as_json=True)))
    assert data["parameters"]["main"] == 15_706_484_224


def test_a_gguf_file_is_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(grouped_config())
    file = write_gguf(model, tmp_path / "tiny.gguf")
    data = json.loads(output(capsys, InspectConfig(model=str(file), as_json=True)))
    assert data["parameters"]["main"] == sum(p.numel() for p in model.parameters())


def test_a_folder_comes_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "config.json").write_text(json.dumps(to_published(get_preset("v3-tiny"))))
    monkeypatch.chdir(tmp_path)
    data = json.loads(output(capsys, InspectConfig(model="v3", as_json=True)))
    assert (
        data["parameters"]["main"] == model_cost(get_preset("v3-tiny"), context=1).parameters.main
    )


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"'v9'.*no such folder.* v2, .*v3-tiny"):
        inspect(InspectConfig(model="v9"))


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        inspect(InspectConfig(model=str(tmp_path)))


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="context = 5000"):
        inspect(InspectConfig(model="v3-tiny", context=5000))


def test_a_preset_is_inspected_without_torch() -> None:
    # So that it answers at once: importing torch takes seconds.
    code = (
        "import sys; from ziphius.cli.inspect import InspectConfig, inspect;"
        "inspect(InspectConfig(model='v3')); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
