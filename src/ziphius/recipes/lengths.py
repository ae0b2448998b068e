"""How long the stages of the main job are: steps and problems, fixed before the first one begins.

A budget of time becomes lengths once, from the speed of a few training steps, and the run keeps
them in its folder. Given as lengths, a run has the same steps on any machine.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.core.files import refuse_occupied, write_file
from ziphius.models.config import ModelConfig
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.train.budget import parse_budget
from ziphius.train.loop import fast_float32
from ziphius.train.optim import build_optimizer
from ziphius.train.optimizer_config import OptimizerConfig

Steps = Annotated[int, Field(ge=1)]

LENGTHS_FILE = "lengths.json"
PROBE_STEPS, SKIPPED_STEPS = 8, 3
"""Steps that are timed, and those before them that compile kernels and fill caches."""
ROWS, ROW_TOKENS = 8, 256
"""Of such a step."""
LEAST_MEASURED = {"measured": 4, "speed_rounds": 3}
"""What a short budget leaves of them."""


class StageLengths(Config):
    """Steps of the stages that train, and problems that are asked.

    The stages that are controls of another follow from that one's FLOPs.
    """

    pretrain: Steps = 120
    """Steps on text."""
    sft: Steps = 2_000
    """Steps on demonstrations."""
    grpo: Steps = 40
    """Steps of reinforcement learning."""
    student: Steps = 800
    """Steps of the student that learns answers."""
    traced: Steps = 2_000
    """Problems of each task and level that the teacher answers for its student."""
    measured: Annotated[int, Field(ge=4)] = 40
    """Problems of each task and level that every model is measured on."""
    speed_rounds: Annotated[int, Field(ge=1)] = 11
    """Turns in which every model's speed of decoding is measured."""

    def scaled(self, factor: float) -> "StageLengths":
        """Return lengths for another budget; what is measured does not grow, and keeps a rest."""
        scaled = {name: max(1, round(factor * n)) for name, n in self.model_dump().items()}
        for name, least in LEAST_MEASURED.items():
            scaled[name] = min(getattr(self, name), max(least, scaled[name]))
        return StageLengths(**scaled)


@dataclass(frozen=True)
class Reference:
    """Lengths, and the time that they take on a machine of a known speed."""

    lengths: StageLengths
    seconds: float
    training_tokens_per_s: float
    """Of the job's own model, as `training_tokens_per_s` measures it."""


def settle(
    folder: Path, budget: str, reference: Reference, shape: ModelConfig, *, keep: bool = True
) -> StageLengths:
    """Return the lengths that a run began with, or find out what a time is worth here and keep it.

    Args:
        folder: of the run; may be missing.
        budget: a time.
        reference: what is scaled.
        shape: of the model that is trained.
        keep: write the lengths into the folder.

    Raises:
        ConfigError: the budget is no time, or the folder has a run of another one.
    """
    amount = parse_budget(budget)
    if amount.unit != "seconds":
        raise ConfigError(f"budget = {budget}: give a time, such as 2m, 15m or 2h.")
    path = folder / LENGTHS_FILE
    if path.exists():
        return _kept(path, budget)
    refuse_occupied(folder)
    speed = training_tokens_per_s(shape, ROWS, ROW_TOKENS)
    factor = amount.amount / reference.seconds * speed / reference.training_tokens_per_s
    lengths = reference.lengths.scaled(float(f"{factor:.2g}"))
    document = {"budget": budget, "training_tokens_per_s": speed, "lengths": lengths.model_dump()}
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(document, indent=1) + "\n")
    return lengths


def read_lengths(path: Path) -> StageLengths:
    """Read the lengths of another run.

    Raises:
        ConfigError: there are none.
    """
    return StageLengths(**_document(path)["lengths"])


def _kept(path: Path, budget: str) -> StageLengths:
    document = _document(path)
    if document["budget"] != budget:
        raise ConfigError(
            f"{path.parent} has a run with --budget {document['budget']}, not {budget}. Choose "
            "another --out, or remove it."
        )
    return StageLengths(**document["lengths"])


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        StageLengths(**document["lengths"])
        return {"budget": document["budget"], "lengths": document["lengths"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} holds no lengths of stages ({error}).") from error


def training_tokens_per_s(shape: ModelConfig, batch_size: int, seq_len: int) -> float:
    """Time a few steps of a new model on random tokens, as the loop does them with Muon.

    Args:
        shape: of the model.
        batch_size: of a step.
        seq_len: tokens of a row.
    """
    model = Model(shape)
    model.initialize(0)
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"))
    ids_BT = torch.randint(shape.vocab_size, (batch_size, seq_len), generator=torch.Generator())
    seconds = []
    with fast_float32(ids_BT.device):
        for _ in range(SKIPPED_STEPS + PROBE_STEPS):
            started = time.perf_counter()
            output = model(ids_BT)
            losses = (
                next_token_loss(model, output, ids_BT),
                *mtp_losses(model, output, ids_BT),
            )
            torch.stack([loss.mean for loss in losses]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
    return batch_size * seq_len / statistics.median(seconds[SKIPPED_STEPS:])
