"""`distill/training.py`: both kinds of run end in a student's checkpoint, and go on exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.numerics.test_golden_sft import sums
from ziphius.core.errors import ConfigError
from ziphius.distill.logit_config import LogitConfig
from ziphius.distill.settings import DistillSettings
from ziphius.distill.training import run_distillation
from ziphius.models.cost import count_parameters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import load, save
from ziphius.text.vocabulary import deepseek_tokenizer
from ziphius.train.instruments_config import InstrumentsConfig
from ziphius.train.settings import SftTraining

QUIET = InstrumentsConfig(tensorboard=False)


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for tokenized conversations that goes with the test."""
    monkeypatch.setattr("ziphius.data.cache.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, one with other tokens, a dense student, and conversations."""
    folder = tmp_path_factory.mktemp("models")
    config = derive(get_preset("v3-tiny"), vocab_size=512, n_routed_experts=16)
    for name, shape, size in (
        ("teacher", config, 512),
        ("other", derive(config, vocab_size=400), 400),
        ("given", get_preset("r1-distill-llama-tiny"), 512),
    ):
        model = Model(shape)
        model.initialize(seed=1)
        save(model, folder / name, deepseek_tokenizer(size), weight_format="float32")
    lines = []
    for conversation in sums():
        messages = [
            {"role": message.role, "content": message.content} for message in conversation.messages
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "sums.jsonl").write_text("".join(lines))
    return folder


def settings(folders: Path, **changes: Any) -> DistillSettings:
    fields: dict[str, Any] = {
        "teacher": folders / "teacher",
        "data": (folders / "sums.jsonl",),
        "epochs": 1,
        "student_share": 0.9,
        "train": SftTraining(seq_len=64, global_batch_size=2, validate_every=0, learning_rate=1e-3),
        "instruments": QUIET,
    }
    return DistillSettings(**(fields | changes))


@pytest.mark.parametrize("kind", ["traces", "logits"])
def test_a_new_student_is_taught(folders: Path, tmp_path: Path, kind: str) -> None:
    wanted = settings(folders, kind=kind)
    finished = run_distillation(wanted, tmp_path / "run")
    assert finished.result.is_complete
    assert finished.result.stage == {"traces": "sft", "logits": "logit-distillation"}[kind]
    student = load(finished.result.checkpoint)
    assert student.config.model_type == "llama"
    teacher = load(folders / "teacher")
    assert count_parameters(student.config).main <= 0.9 * count_parameters(teacher.config).main
    again = load(run_distillation(wanted, tmp_path / "again").result.checkpoint)
    for one, other in zip(student.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_given_student_goes_on_from_its_weights(folders: Path, tmp_path: Path) -> None:
    given = folders / "given"
    train = SftTraining(seq_len=64, global_batch_size=2, validate_every=0, learning_rate=1e-9)
    wanted = settings(folders, kind="logits", model=given, student_share=1 / 3, train=train)
    student = load(run_distillation(wanted, tmp_path / "run").result.checkpoint)
    for one, other in zip(student.parameters(), load(given).parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_other_tokens_are_refused_for_logits_alone(folders: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": folders / "given", "student_share": 1 / 3}
    other = folders / "other"
    with pytest.raises(ConfigError, match=r"different tokenizers \(512 and 400 tokens\)"):
        run_distillation(
            settings(folders, kind="logits", teacher=other, **changes), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    run_distillation(settings(folders, teacher=None, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "Give --teacher"),
        ({"teacher": None, "kind": "logits"}, "Give --teacher"),
        ({"data": ()}, "Give --data"),
    ],
)
def test_what_is_missing_is_named(
    folders: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_distillation(settings(folders, **changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Path("x")}, "student_share has no effect"),
        ({"model": Path("x"), "student_share": 1 / 3}, "teacher has no effect"),
        ({"logits": LogitConfig(temperature=2.0)}, "logits has no effect"),
        ({"kind": "logits", "lora": LoraConfig(rank=4)}, "rank has no effect"),
        ({"student_share": 0.0}, "student_share"),
    ],
)
def test_settings_without_effect_are_refused(
    folders: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(folders, **changes)
