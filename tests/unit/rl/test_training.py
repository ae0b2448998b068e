"""`rl/training.py`: a model folder in, checkpoints out, and the same after a crash."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.unit.rl.toys import TOKENIZER, model_of, pay_low_ids
from tests.unit.rollout.tasks import Echo, add_echo
from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.models.weights import load
from ziphius.models.weights.saving import save
from ziphius.ops import native
from ziphius.rl.grpo import GrpoStage
from ziphius.rl.headroom import NoHeadroomError
from ziphius.rl.settings import GrpoSettings
from ziphius.rl.training import run_grpo
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.records import metrics_hash, read_metrics


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    pay_low_ids(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "sft"
    save(model_of("v3-tiny"), path)
    TOKENIZER.save(path)
    return path


def settings(model: Path, **changes: Any) -> GrpoSettings:
    train = {
        "budget": "4-steps",
        "global_batch_size": 8,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "validate_every": 2,
    } | changes.pop("train", {})
    fields: dict[str, Any] = {
        "model": model,
        "tasks": [{"name": "echo"}],
        "pool": 20,
        "validation_problems": 3,
        "headroom_problems": 0,
        "grpo": {"rollout": {"num_generations": 4, "max_new_tokens": 5}},
        "instruments": {"quiet": True, "tensorboard": False},
        "train": train,
    }
    return GrpoSettings.model_validate(fields | changes)


def test_a_run_says_when_its_answers_do_not_come_from_a_native_program(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = settings(folder, train={"budget": "1-steps"})
    if native.serves():
        assert "modules" not in run_grpo(short, tmp_path / "native").text
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    told = run_grpo(short, tmp_path / "run").text
    assert "Answers are sampled by the modules, slower: native kernels are" in told


def test_a_run_leaves_a_model_that_can_be_used(folder: Path, tmp_path: Path) -> None:
    done = run_grpo(settings(folder), tmp_path / "run")
    assert done.result.is_complete
    assert done.result.stage == "grpo"
    assert "2 problems x 4 completions a step, of echo 1" in done.text
    trained, start = load(done.result.checkpoint), load(folder)
    moved = {
        name
        for name, tensor in start.state_dict().items()
        if not torch.equal(tensor, trained.state_dict()[name])
    }
    assert "lm_head.weight" in moved
    assert not any("correction_bias" in name or ".layers.3." in name for name in moved)
    assert load_tokenizer(done.result.checkpoint).chat_format == "deepseek-r1"
    steps = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    assert len(steps) == 4
    assert all(line["terms"]["sampling_logp_difference_max"] <= 1e-5 for line in steps)


def test_a_run_that_crashed_ends_as_one_that_did_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grpo = {
        "rollout": {"num_generations": 4, "max_new_tokens": 5},
        "num_iterations": 3,
        "beta": 0.1,
    }
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_grpo(settings(folder, grpo=grpo), whole)
    batches = GrpoStage.batches

    def crashes(self: GrpoStage, step: int) -> list[Batch]:
        if step == 2:  # in the middle of a round
            raise ZeroDivisionError
        return batches(self, step)

    often = settings(folder, grpo=grpo, train={"save_every": "1-steps"})
    monkeypatch.setattr(GrpoStage, "batches", crashes)
    with pytest.raises(ZeroDivisionError):
        run_grpo(often, halves)
    monkeypatch.setattr(GrpoStage, "batches", batches)
    done = run_grpo(settings(folder, grpo=grpo), halves)
    assert done.figures is not None
    assert done.figures.exact == "yes"
    assert metrics_hash(whole) == metrics_hash(halves)


def test_a_model_without_room_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoHeadroomError, match=r"pass@16 is 0\.0 % on 2 problems"):
        run_grpo(settings(folder, headroom_problems=2), tmp_path / "run")
    monkeypatch.setattr(Echo, "verify", lambda self, problem, answer: True)
    with pytest.raises(NoHeadroomError, match=r"pass@1 is 100\.0 %"):
        run_grpo(settings(folder, headroom_problems=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_needs_is_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tasks, at least one"):
        run_grpo(settings(folder, tasks=[]), tmp_path / "run")
    endless = {"rollout": {"num_generations": 4, "max_new_tokens": 100_000}}
    with pytest.raises(ConfigError, match="the model is made for"):
        run_grpo(settings(folder, grpo=endless), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"global_batch_size": 6}}, "must be a multiple of 4"),
        ({"train": {"micro_batch_size": 2}}, "must be a multiple of 4"),
        ({"train": {"budget": "1M-tokens"}}, "give a time or steps"),
        ({"train": {"bias_rate": 0.001}}, "bias_rate has no effect"),
        ({"train": {"seq_len": 100}}, "seq_len has no effect"),
        ({"lora": {"rank": 4}}, "adapters are not trained"),
        ({"grpo": {"rollout": {"num_generations": 1}}}, "at least 2"),
        ({"grpo": {"rollout": {"sampling": {"top_p": 0.9}}}}, "top_p: answers to learn from"),
        ({"grpo": {"format_bonus": 0.1}}, "Set advantage to mean, or format_bonus to 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(Path("model"), **changes)
