from pathlib import Path

import pytest
import torch

from tests.tiny import build
from tests.training import RandomRows, moe_config, train_config
from ziphius.dist.world import ALONE, World
from ziphius.models.config import ModelConfig
from ziphius.ops import native
from ziphius.train.config import WITHOUT_EFFECT, TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.fingerprint import (
    Fingerprint,
    differences,
    fingerprint,
    frozen_sum,
)
from ziphius.train.guard import Guard
from ziphius.train.optim import build_optimizer
from ziphius.train.seams import TrainState
from ziphius.train.stages.pretrain import Pretrain

CONFIG = train_config()


def made(
    config: TrainConfig = CONFIG,
    model_config: ModelConfig | None = None,
    world: World = ALONE,
    data: str = "text",
) -> Fingerprint:
    model = build(model_config or moe_config())
    rows = RandomRows(config)
    stage = Pretrain(rows, model.config, config, data_fingerprint=data)
    optimizer = build_optimizer(model, config.optimizer)
    state = TrainState(model, optimizer, None, stage, Guard(config.guard))
    return fingerprint(state, config, world, frozen_sum(model))


def test_nothing_differs_from_itself() -> None:
    assert differences(made(), made()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "11-steps"),
        ("device", "cpu"),
        ("keep_last", 5),
        ("log_every", 7),
        ("save_every", "9-steps"),
        ("validate_every", 3),
        ("workers", 4),
    ],
)
def test_settings_without_effect_on_numbers_may_change(name: str, value: object) -> None:
    assert f"train.{name}" in WITHOUT_EFFECT
    assert differences(made(), made(train_config(**{name: value}))) == []


def test_names_without_effect_are_settings() -> None:
    assert {
        name.removeprefix("train.") for name in WITHOUT_EFFECT
    } <= TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"learning_rate": 0.5}, "train.learning_rate was None and is 0.5"),
        ({"micro_batch_size": 2}, "train.micro_batch_size was None and is 2"),
        ({"optimizer": {"beta2": 0.9}}, "train.optimizer.beta2 was 0.95 and is 0.9"),
        (
            {"activation_checkpointing": True},
            "train.activation_checkpointing was False and is True",
        ),
    ],
)
def test_other_settings_are_named_with_both_values(changes: dict[str, object], phrase: str) -> None:
    assert differences(made(), made(train_config(**changes))) == [phrase]


def test_model_data_and_processes_are_compared() -> None:
    other = made(model_config=moe_config(rope_theta=5.0), world=World(1, 2), data="more text")
    phrases = differences(made(), other)
    assert [phrase.split(" was ")[0] for phrase in phrases] == [
        "data",
        "processes",
        "model.rope_theta",
    ]
    assert "processes was 1 and is 2" in phrases


def test_software_and_machine_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made()
    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    monkeypatch.setattr("ziphius.__version__", "8.8")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    names = [phrase.split(" was ")[0] for phrase in differences(before, made())]
    assert names == ["ziphius", "torch", "device", "threads"]


def test_native_kernels_switched_off_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda *tensors: True)
    before = made()
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    [phrase] = differences(before, made())
    assert "native kernels" in phrase
    assert "plain kernels" in phrase


@pytest.mark.parametrize("optimizer", [{"name": "muon"}, {"moments": "bfloat16"}])
def test_a_state_that_does_not_fit_the_optimizer_is_refused(optimizer: dict[str, str]) -> None:
    config = train_config(optimizer=optimizer)
    with pytest.raises(TrainingError, match=r"train\.optimizer\.\w+ was .* cannot go on"):
        differences(made(), made(config))


def test_a_setting_of_another_version_is_named() -> None:
    assert differences(made() | {"train.gone": 1}, made()) == ["train.gone was 1 and is None"]
    assert differences(made(), made() | {"train.new": 1}) == ["train.new was None and is 1"]


def test_the_sum_of_frozen_weights_is_of_those_alone(tmp_path: Path) -> None:
    model = build(moe_config())
    nothing = frozen_sum(model)
    trained, frozen = model.model.norm.weight, model.lm_head.weight
    frozen.requires_grad_(False)
    before = frozen_sum(model)
    assert before != nothing
    trained.data.zero_()
    assert frozen_sum(model) == before
    frozen.data[0, 0] += 1.0
    after = frozen_sum(model)
    assert after != before
    model.bfloat16()
    assert frozen_sum(model) != after
