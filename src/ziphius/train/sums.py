"""What is added up over the micro-batches and ranks of a step.

Sums are float64, so that the order of micro-batches does not show in what is reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ziphius.dist.world import World
from ziphius.models.gates import Routing
from ziphius.train.stage import LossOutput


@dataclass
class Sums:
    """Losses, metrics and routing statistics of the micro-batches so far."""

    device: torch.device
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Summed losses, without coefficients."""
    weight_keys: dict[str, str] = field(default_factory=dict)
    """What each of them is to be divided by."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)
    """Metrics that keep the largest value."""
    counts: dict[int, Tensor] = field(default_factory=dict)
    """By layer: the tokens each expert received, and after them all tokens."""
    entropies: dict[int, Tensor] = field(default_factory=dict)
    """By layer: the entropy of the affinities, summed over tokens."""
    losses: list[Tensor] = field(default_factory=list)
    """The first term of each micro-batch of this rank."""

    def add(self, output: LossOutput) -> None:
        """Take in one micro-batch."""
        self.losses.append(self._number(next(iter(output.terms.values())).loss_sum))
        for name, term in output.terms.items():
            _add(self.terms, name, self._number(term.loss_sum))
            self.weight_keys[name] = term.weight_key
        for name, value in output.metrics.items():
            assert name.endswith(("_sum", "_max")), f"{name}: how is this metric put together?"
            if name.endswith("_sum"):
                _add(self.metrics, name, self._number(value))
            else:
                held = self.largest.get(name, self._number(value))
                self.largest[name] = torch.maximum(held, self._number(value))
        for layer, routing in output.routings.items():
            self._add_routing(layer, routing)

    def reduce(self, world: World) -> None:
        """Put the ranks together."""
        groups: tuple[Mapping[Any, Tensor], ...] = (
            self.terms,
            self.metrics,
            self.counts,
            self.entropies,
        )
        world.sum_flat_([tensor for group in groups for tensor in group.values()])
        for tensor in self.largest.values():
            world.max_(tensor)

    def _add_routing(self, layer: int, routing: Routing) -> None:
        probs_ME = routing.probs_ME.detach()
        _add(self.entropies, layer, self._number(torch.special.entr(probs_ME).sum()))
        tokens = torch.tensor([len(probs_ME)], device=self.device)
        _add(self.counts, layer, torch.cat((routing.counts(), tokens)).double())

    def _number(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, device=self.device).detach().double()


def _add(sums: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
