"""What a training stage gives to the loop: batches, losses and their weights; never a loop.

The division of labour: a stage returns *sums* over a micro-batch, and says from the data alone what
each sum is to be divided by. Only `train/step.py` divides, by the weights of the whole step over
all micro-batches and ranks, so that any split of a step gives the same gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ziphius.data.batch import Batch
from ziphius.models.gates import Routing
from ziphius.models.model import Model


@dataclass
class Term:
    """One part of the loss: it adds coefficient * loss_sum / (global weight of `weight_key`)."""

    loss_sum: Tensor
    weight_key: str
    coefficient: float = 1.0


@dataclass
class LossOutput:
    """The losses of one micro-batch.

    The first term is the one that curves and guards look at, and what a step is for: where its
    global weight is 0 there is nothing to learn, and the step moves nothing (`train/step.py`).
    """

    terms: dict[str, Term]
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    """Over all micro-batches and ranks, names that end in _sum are added up and names that end in
    _max keep the largest; nothing is divided."""
    routings: dict[int, Routing] = field(default_factory=dict)
    """By layer, for the router biases and the statistics of load; read behind the backward pass."""


class Stage(ABC):
    """One kind of training; the loop calls its methods in the order of a run.

    Batches depend on (seed, step) alone, so the position in the data is the number of the step. A
    stage that has more to remember keeps it in `state`.
    """

    name: str

    @abstractmethod
    def batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of an optimizer step, counted from 0."""

    @abstractmethod
    def weights(self, batch: Batch) -> dict[str, float]:
        """Return the divisors of a micro-batch's sums; the same keys for every batch of a run."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
        """Return the summed losses of a micro-batch.

        Args:
            model: in training mode, under the run's autocast.
            batch: on the model's device.
            progress: share of the run done, 0 to 1; 0 until the length of the run is known.
        """

    @abstractmethod
    def validate(self, model: Model) -> dict[str, float]:
        """Measure the model, in evaluation mode and without gradients, on all ranks together.

        Returns:
            Figures by name; `loss` is there, and decides which checkpoint is the best.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Name everything that the batches depend on."""

    def baselines(self) -> dict[str, float]:
        """Return the losses of models that know next to nothing, by name; none if unknown."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the step, JSON-serialisable."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        assert not state, f"the stage {self.name} keeps no state"
