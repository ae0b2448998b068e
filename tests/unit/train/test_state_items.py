import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import build, grouped_config
from tests.training import RandomRows, moe_config, train_config
from ziphius.models.config import ModelConfig
from ziphius.models.lora import add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.train.config import TrainConfig
from ziphius.train.ema import Ema
from ziphius.train.errors import TrainingError
from ziphius.train.guard import Guard
from ziphius.train.optim import OPTIMIZERS, build_optimizer
from ziphius.train.rng import rng_state, set_rng_state
from ziphius.train.seams import TrainState
from ziphius.train.stages.pretrain import Pretrain
from ziphius.train.state_items import STATE_ITEMS, SavedItem, has_adapters

CPU = torch.device("cpu")
CONFIG = train_config(ema_decay=0.9)


@pytest.fixture(autouse=True)
def _random_states_of_other_tests() -> Iterator[None]:
    state = rng_state(CPU)
    yield
    set_rng_state(*state, CPU)


class Remembering(Pretrain):
    """A stage that has something to remember."""

    memory = 0

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.memory = state["memory"]


def started(
    seed: int,
    config: TrainConfig = CONFIG,
    model_config: ModelConfig | None = None,
    *,
    lora: bool = False,
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """A state in the middle of a run; with another seed everything in it is other."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = build(model_config or moe_config(), 0 if lora else seed).to(dtype)
    if lora:
        add_adapters(model, LoraConfig(rank=2), seed=seed)
    optimizer = build_optimizer(model, config.optimizer)
    ema = Ema(model, 0.9) if config.ema_decay else None
    stage = Remembering(RandomRows(config), model.config, config)
    guard = Guard(config.guard)
    state = TrainState(model, optimizer, ema, stage, guard, plan={"budget": config.budget})
    for step in range(3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        if ema is not None:
            ema.update(model, step)
        guard.observe(step, 1.0 + seed / 7 + step)
    optimizer.zero_grad()
    for buffer in model.buffers():
        buffer.normal_()
    stage.memory = 10 + seed
    state.step, state.tokens_seen, state.seconds = 3 + seed, 300 + seed, 0.1 + seed
    state.plan["total_steps"] = 30 + seed
    state.validation = {"loss": 0.3 + seed}
    return state


def observed(state: TrainState) -> dict[str, Any]:
    """Everything about a state that can be seen, without the code under test."""
    found: dict[str, Any] = {f"weights {n}": t for n, t in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            found[f"optimizer {name} {key}"] = value
    for name, value in ({} if state.ema is None else state.ema.tensors).items():
        found[f"ema {name}"] = value
    found["drawn by torch"] = torch.rand(2)
    found["drawn by numpy"] = np.random.randn()
    found["drawn by python"] = random.random()
    for name in ("step", "tokens_seen", "seconds", "plan", "validation"):
        found[name] = getattr(state, name)
    return found | {"guard": list(state.guard.window), "memory": state.stage.state()}


def different(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """Name what is not equal, bit for bit."""
    assert first.keys() == second.keys()
    return {name for name in first if not _same(first[name], second[name])}


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor):
        return bool(first == second)
    return first.dtype == second.dtype and torch.equal(first, second)


def moved(saved: SavedItem) -> SavedItem:
    """A part as it comes back from disk."""
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    return SavedItem(tensors, json.loads(json.dumps(saved.values)))


def restore(state: TrainState, saved: Mapping[str, SavedItem]) -> None:
    """Put back what is held, in the order of the train state."""
    for name, item in STATE_ITEMS.items():
        if name in saved:
            item.restore(state, saved[name])


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no average": {"config": train_config()},
    "adapters": {"lora": True},
    "adapters on bfloat16": {"lora": True, "dtype": torch.bfloat16},
    "tied": {"model_config": grouped_config(tie_word_embeddings=True)},
    "muon": {"config": train_config(optimizer={"name": "muon"}, ema_decay=0.9)},
    "bfloat16 moments": {"config": train_config(optimizer={"moments": "bfloat16"})},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_all_parts_together_make_an_equal_state(name: str) -> None:
    variant = VARIANTS[name]
    state = started(1, **variant)
    saved = {name: moved(item.capture(state)) for name, item in STATE_ITEMS.items()}
    expected = observed(state)
    other = started(2, **variant)
    place = other.model.model.norm.weight.data_ptr()
    restore(other, saved)
    assert different(observed(other), expected) == set()
    assert other.model.model.norm.weight.data_ptr() == place, "the optimizer knows the old tensors"


TOUCHED = {
    "model": ("weights ",),
    "adapters": (),
    "optimizer": ("optimizer ",),
    "ema": ("ema ",),
    "rng": ("drawn ",),
    "progress": ("step", "tokens_seen", "seconds", "plan", "validation"),
    "guard": ("guard",),
    "stage": ("memory",),
}


@pytest.mark.parametrize("left_out", STATE_ITEMS)
def test_each_part_left_out_leaves_its_own_things_other(left_out: str) -> None:
    state = started(1)
    saved = {
        name: moved(item.capture(state)) for name, item in STATE_ITEMS.items() if name != left_out
    }
    expected = observed(state)
    other = started(2)
    restore(other, saved)
    found = different(observed(other), expected)
    wanted = {name for name in expected if name.startswith(TOUCHED[left_out])}
    if left_out == "optimizer":  # the number of the step is the same
        wanted = {name for name in wanted if not name.endswith(" step")}
    assert found == (wanted if TOUCHED[left_out] else set())


def test_each_optimizer_has_state_to_keep() -> None:
    for name in OPTIMIZERS:
        state = started(1, train_config(optimizer={"name": name}))
        saved = STATE_ITEMS["optimizer"].capture(state)
        assert {key.split("|")[0] for key in saved.tensors} == {
            key for key, _ in state.model.named_parameters()
        }


def test_copies_do_not_follow_the_run() -> None:
    state = started(1)
    saved = {name: item.capture(state) for name, item in STATE_ITEMS.items() if name != "stage"}
    before = {name: moved(item) for name, item in saved.items()}
    for parameter in state.model.parameters():
        parameter.data.zero_()
        for value in state.optimizer.state[parameter].values():
            value.zero_()
    for value in (*state.ema.tensors.values(), *state.model.buffers()):
        value.zero_()
    for name, item in before.items():
        assert different(saved[name].tensors, item.tensors) == set(), name


def test_adapters_move_and_frozen_weights_are_not_kept() -> None:
    state = started(1, lora=True)
    assert has_adapters(state.model)
    names = STATE_ITEMS["adapters"].capture(state).tensors.keys()
    assert any(name.endswith("lora_A.weight") for name in names)
    assert any(name.endswith("e_score_correction_bias") for name in names)
    assert "lm_head.weight" not in names
    assert not has_adapters(started(1).model)
    assert STATE_ITEMS["adapters"].capture(started(1)).tensors == {}


def test_nothing_of_the_frozen_weights_is_kept_in_any_part() -> None:
    state = started(1, lora=True)
    frozen = {name for name, p in state.model.named_parameters() if not p.requires_grad}
    kept = {name for item in STATE_ITEMS.values() for name in item.capture(state).tensors}
    assert frozen
    assert not {name.partition("|")[0] for name in kept} & frozen


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"model_config": moe_config(intermediate_size=36)}, {}, r"shape \[32, 24\] in the chec"),
        ({}, {"model_config": moe_config(num_nextn_predict_layers=0)}, "no tensor in the checkp"),
        ({"model_config": moe_config(num_nextn_predict_layers=0)}, {}, "no tensor in this run"),
        ({"lora": True}, {}, "lora_A.weight has no tensor in the checkpoint"),
        ({}, {"lora": True}, "in the model, .* has no tensor in the checkpoint"),
        ({"config": train_config()}, {}, "ema_decay"),
        ({}, {"config": train_config()}, "ema_decay"),
    ],
)
def test_a_state_of_another_shape_is_refused(
    ours: dict[str, Any], theirs: dict[str, Any], reason: str
) -> None:
    state, other = started(1, **ours), started(1, **theirs)
    saved = {name: item.capture(other) for name, item in STATE_ITEMS.items()}
    with pytest.raises(TrainingError, match=rf"does not fit this run: .*{reason}"):
        restore(state, saved)


def test_an_optimizer_of_other_weights_is_refused() -> None:
    saved = STATE_ITEMS["optimizer"].capture(
        started(1, model_config=moe_config(intermediate_size=36))
    )
    with pytest.raises(TrainingError, match="fits no weight of the model"):
        STATE_ITEMS["optimizer"].restore(started(1), saved)


def test_a_new_budget_keeps_its_own_plan() -> None:
    saved = STATE_ITEMS["progress"].capture(started(1))
    same, other = started(2), started(2, train_config(ema_decay=0.9, budget="99-steps"))
    for state in (same, other):
        STATE_ITEMS["progress"].restore(state, saved)
    assert same.plan == {"budget": "10-steps", "total_steps": 31}
    assert other.plan == {"budget": "99-steps", "total_steps": 32}
    assert same.step == other.step == 4
