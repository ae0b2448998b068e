"""`recipes/lengths.py`: a time becomes steps once, and the folder keeps them."""

import json
from pathlib import Path

import pytest

from tests.tiny import latent_config
from ziphius.core.errors import ConfigError, OutputError
from ziphius.recipes import lengths
from ziphius.recipes.lengths import LENGTHS_FILE, Reference, StageLengths, read_lengths, settle

REFERENCE = Reference(StageLengths(), seconds=900.0, training_tokens_per_s=1_000.0)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The speeds that are measured, one after the other."""
    speeds = [500.0]
    monkeypatch.setattr(lengths, "training_tokens_per_s", lambda *shape: speeds.pop(0))
    return speeds


def test_half_the_speed_is_half_the_steps(tmp_path: Path, speed: list[float]) -> None:
    found = settle(tmp_path / "run", "15m", REFERENCE, latent_config())
    assert found == StageLengths().scaled(0.5)
    assert (found.sft, found.grpo) == (StageLengths().sft / 2, StageLengths().grpo / 2)


def test_a_run_keeps_its_lengths_whatever_the_speed_is_later(
    tmp_path: Path, speed: list[float]
) -> None:
    first = settle(tmp_path, "15m", REFERENCE, latent_config())
    speed.append(9_999.0)
    assert settle(tmp_path, "15m", REFERENCE, latent_config()) == first
    assert speed == [9_999.0]
    assert read_lengths(tmp_path / LENGTHS_FILE) == first


def test_another_budget_in_the_same_folder_is_refused(tmp_path: Path, speed: list[float]) -> None:
    settle(tmp_path, "15m", REFERENCE, latent_config())
    with pytest.raises(ConfigError, match="--budget 15m, not 2h"):
        settle(tmp_path, "2h", REFERENCE, latent_config())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, speed: list[float]) -> None:
    (tmp_path / "letters.txt").write_text("dear whale")
    with pytest.raises(OutputError, match="not empty"):
        settle(tmp_path, "15m", REFERENCE, latent_config())
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_only_a_time_can_be_turned_into_lengths(tmp_path: Path, speed: list[float]) -> None:
    with pytest.raises(ConfigError, match="give a time"):
        settle(tmp_path, "100-steps", REFERENCE, latent_config())


def test_nothing_is_written_where_nothing_is_to_be_kept(tmp_path: Path, speed: list[float]) -> None:
    settle(tmp_path / "run", "15m", REFERENCE, latent_config(), keep=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "{", '{"lengths": {"sft": 0}}', '{"lengths": {}}', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / LENGTHS_FILE).write_text(text)
    with pytest.raises(ConfigError, match="holds no lengths"):
        read_lengths(tmp_path / LENGTHS_FILE)


def test_no_stage_shrinks_to_nothing_and_measuring_does_not_grow() -> None:
    least, most = StageLengths().scaled(1e-6), StageLengths().scaled(100.0)
    assert min(least.model_dump().values()) == 1
    assert (least.measured, least.speed_rounds) == (4, 3)
    assert (most.measured, most.speed_rounds) == (40, 11)
    assert most.sft == 100 * StageLengths().sft


def test_the_speed_is_measured_on_the_model_itself() -> None:
    assert lengths.training_tokens_per_s(latent_config(), batch_size=2, seq_len=16) > 0


def test_the_file_says_what_it_was_made_from(tmp_path: Path, speed: list[float]) -> None:
    settle(tmp_path, "15m", REFERENCE, latent_config())
    document = json.loads((tmp_path / LENGTHS_FILE).read_text())
    assert document["budget"] == "15m"
    assert document["training_tokens_per_s"] == 500.0
