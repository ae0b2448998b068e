from pathlib import Path

import pytest

from ziphius.core.errors import ConfigError, OutputError
from ziphius.recipes.stages import StageResult, claimed, done_once
from ziphius.train.errors import TrainingError


def made(folder: Path) -> StageResult:
    return StageResult("a", folder, 2.5, checkpoint=folder / "checkpoints" / "step-3", tokens=7)


def test_a_stage_is_done_once_wherever_its_folder_lies(tmp_path: Path) -> None:
    calls = []

    def do(folder: Path) -> StageResult:
        calls.append(folder)
        return made(folder)

    first = done_once("a", tmp_path / "1-a", {"seed": 1}, do)
    assert (first, first.was_done) == (made(tmp_path / "1-a"), False)
    (tmp_path / "1-a").rename(tmp_path / "moved")
    again = done_once("a", tmp_path / "moved", {"seed": 1}, do)
    assert len(calls) == 1
    assert again.was_done
    assert again.checkpoint == tmp_path / "moved" / "checkpoints" / "step-3"
    assert (again.seconds, again.tokens) == (2.5, 7)


def test_a_stage_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    done_once("a", tmp_path / "1-a", {"seed": 1, "budget": "2m"}, made)
    with pytest.raises(ConfigError, match=r"another run \(seed differ"):
        done_once("a", tmp_path / "1-a", {"seed": 2, "budget": "2m"}, made)


def test_a_stage_that_breaks_off_is_done_again(tmp_path: Path) -> None:
    def broken(folder: Path) -> StageResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done_once("a", tmp_path / "1-a", {}, broken)
    assert not done_once("a", tmp_path / "1-a", {}, made).was_done


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text("{")
    with pytest.raises(ConfigError, match=r"stage\.json cannot be read"):
        done_once("a", tmp_path, {}, made)


def test_a_folder_is_claimed_for_one_process_and_one_set_of_settings(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (
        claimed(folder, {"seed": 1}),
        pytest.raises(TrainingError, match="in use by"),
        claimed(folder, {"seed": 1}),
    ):
        pass
    with claimed(folder, {"seed": 1}):
        pass
    with pytest.raises(ConfigError, match="seed was 1 and is 2"), claimed(folder, {"seed": 2}):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(OutputError), claimed(tmp_path / "other", {}):
        pass
