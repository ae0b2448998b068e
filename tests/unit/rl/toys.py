"""A task, a model and a stage small enough to train in a test."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.rollout.tasks import echo
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.rl import rollout_batch
from ziphius.rl.grpo import GrpoStage
from ziphius.rl.settings import GrpoConfig, GrpoTraining
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout
from ziphius.tasks import Problem
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
NUM_GENERATIONS = 4
LOW_ID = 100
"""Ids below it are what the toy reward wants to see."""


def model_of(preset: str, seed: int = 0, **changes: Any) -> Model:
    """A tiny model whose logits are sharp enough for answers to differ in length."""
    model = Model(derive(get_preset(preset), **changes))
    model.initialize(seed)
    return model


def grpo_config(**changes: Any) -> GrpoConfig:
    rollout = RolloutConfig(num_generations=NUM_GENERATIONS, max_new_tokens=6)
    return GrpoConfig(**({"rollout": rollout} | changes))


def training(**changes: Any) -> GrpoTraining:
    fields: dict[str, Any] = {
        "budget": "6-steps",
        "global_batch_size": 12,
        "dtype": "float32",
        "learning_rate": 3e-3,
        "clip": 1.0,
        "warmup_steps": 2,
        "validate_every": 0,
        "save_every": "1000000-steps",
    }
    return GrpoTraining(**(fields | changes))


def questions(number: int, refill_round: int = 0) -> list[Problem]:
    """Three problems of a round, prompts of different lengths; others for each refill."""
    letter = "xyzuvw"[refill_round]
    return [echo(letter * (2 + 3 * place) + str(number)) for place in range(3)]


def stage(
    model: Model,
    config: GrpoConfig | None = None,
    train: GrpoTraining | None = None,
    **options: Any,
) -> GrpoStage:
    return GrpoStage(
        model, TOKENIZER, questions, config or grpo_config(), train or training(), **options
    )


def low_share(rollout: Rollout, format_bonus: float) -> float:
    """A reward that a random model has a gradient for: how many of its ids are low."""
    return sum(token < LOW_ID for token in rollout.token_ids) / len(rollout.token_ids)


def pay_low_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `low_share` for the reward."""
    monkeypatch.setattr(rollout_batch, "reward", low_share)


def copied(model: Model) -> Model:
    return copy.deepcopy(model)


def tensor(values: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def objective(found: GrpoStage, model: Model, step: int) -> tuple[Tensor, dict[str, float]]:
    """What `train/step.py` makes of a step: every term over its weight of all micro-batches."""
    batches = found.batches(step)
    weights: dict[str, float] = {}
    for batch in batches:
        for key, weight in found.weights(batch).items():
            weights[key] = weights.get(key, 0.0) + weight
    total = torch.zeros(())
    means: dict[str, float] = {}
    for batch in batches:
        output = found.loss(model, batch, 0.0)
        for name, term in output.terms.items():
            share = 1 / max(1.0, weights[term.weight_key])
            total = total + term.coefficient * share * term.loss_sum
            means[name] = means.get(name, 0.0) + share * float(term.loss_sum.detach())
        gap = float(output.metrics["sampling_logp_difference_max"])
        means["gap"] = max(means.get("gap", 0.0), gap)
    return total, means


@torch.no_grad()
def nudge(model: Model, size: float) -> None:
    """Move all weights a little, as a step would."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator)
