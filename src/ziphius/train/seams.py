"""What the loop holds, and what it asks of those that keep its state and show its figures."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ziphius.models.model import Model
from ziphius.train.ema import Ema
from ziphius.train.guard import Guard
from ziphius.train.stage import Stage


@dataclass
class TrainState:
    """Everything a run is made of between two steps; the loop alone changes it."""

    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    stage: Stage
    guard: Guard
    step: int = 0
    """Steps done."""
    tokens_seen: int = 0
    seconds: float = 0.0
    """Of training, over all starts of the run."""
    plan: dict[str, Any] = field(default_factory=dict)
    """`total_steps`, None while it is not known, and the `budget` it was made from."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last figures on held-out text."""
    validation_step: int = 0
    """Steps that were done when they were measured."""
    validation_at_start: dict[str, float] = field(default_factory=dict)
    """The figures of before the first step."""


@dataclass(frozen=True)
class StepRecord:
    """What is written down about a step."""

    step: int
    """Steps done, this one included."""
    loss: float
    terms: dict[str, float]
    tokens: int
    """Of this step."""
    seconds: float
    """Of this step."""
    learning_rate: float
    grad_norm: float
    grad_norm_by_part: dict[str, float]
    counts_by_layer: dict[int, list[int]]
    gate_entropy_by_layer: dict[int, float]
    progress: float
    """Share of the run done, this step included; 0 while its length is not known."""
    eta_s: float
    bytes_count: int
    is_skipped: bool = False
    """There was nothing to learn, so nothing moved."""


@dataclass(frozen=True)
class ValidationRecord:
    """What is written down about a measurement on held-out text."""

    step: int
    """Steps done before it."""
    figures: dict[str, float]
    seconds: float


class Recorder(Protocol):
    """Shows a run and writes it down; on the first rank only."""

    def resumed(self, step: int, exact: str) -> None:
        """Forget what was recorded after `step`; `exact` is `yes`, or `no because ...`."""
        ...

    def step(self, record: StepRecord) -> None:
        """Take in a step."""
        ...

    def validation(self, record: ValidationRecord) -> None:
        """Take in a measurement."""
        ...

    def warn(self, message: str) -> None:
        """Show something the user should know, and keep it."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class Store(Protocol):
    """Keeps the checkpoints of a run folder."""

    def lock(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder for the length of a block."""
        ...

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is whole."""
        ...

    def restore(self, state: TrainState, checkpoint: Path) -> str:
        """Fill a state of the same shape; return `yes` if the run goes on exactly, or why not."""
        ...

    def save_async(self, state: TrainState) -> None:
        """Copy the state now and write it in the background."""
        ...

    def wait(self) -> Path:
        """Wait for the last checkpoint and return its folder."""
        ...
