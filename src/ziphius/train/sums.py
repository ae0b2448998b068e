"""What is added up over the micro-batches and ranks of a step.

Sums are exact, so that the order of micro-batches does not show in what is reported. They are taken
on the CPU, once a step: not every device has float64, and a transfer for each number would make the
device wait.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius.core.device import float64_device
from ziphius.dist.world import World
from ziphius.models.gates import Routing
from ziphius.train.stage import LossOutput

Number = Tensor | float
"""A scalar, on whatever device."""


@dataclass(frozen=True)
class Totals:
    """Losses, metrics and routing statistics of a step."""

    terms: dict[str, float]
    """Summed losses, without coefficients."""
    metrics: dict[str, float]
    counts: dict[int, list[int]]
    """By layer: the tokens each expert received."""
    entropies: dict[int, float]
    """By layer: the entropy of the affinities, mean over tokens."""


@dataclass
class Sums:
    """What the micro-batches of this rank have had so far."""

    weight_keys: dict[str, str] = field(default_factory=dict)
    """What each term is to be divided by."""
    losses: list[Tensor] = field(default_factory=list)
    """The first term of each micro-batch."""
    _terms: dict[str, list[Number]] = field(default_factory=dict)
    _metrics: dict[str, list[Number]] = field(default_factory=dict)
    _entropies: dict[int, list[Number]] = field(default_factory=dict)
    _counts: dict[int, Tensor] = field(default_factory=dict)
    """By layer, int64: the tokens each expert received, and after them all tokens."""

    def add(self, output: LossOutput) -> None:
        """Take in one micro-batch."""
        self.losses.append(next(iter(output.terms.values())).loss_sum.detach())
        for name, term in output.terms.items():
            self._terms.setdefault(name, []).append(term.loss_sum.detach())
            self.weight_keys[name] = term.weight_key
        for name, value in output.metrics.items():
            assert name.endswith(("_sum", "_max")), f"{name}: how is this metric put together?"
            kept = value.detach() if isinstance(value, Tensor) else value
            self._metrics.setdefault(name, []).append(kept)
        for layer, routing in sorted(output.routings.items()):
            self._add_routing(layer, routing)

    def totals(self, world: World, device: torch.device) -> Totals:
        """Put the micro-batches and the ranks together; `device` is where collectives are."""
        place = float64_device(device)
        is_largest = {name: name.endswith("_max") for name in self._metrics}
        summed = {name: values for name, values in self._metrics.items() if not is_largest[name]}
        largest = {name: values for name, values in self._metrics.items() if is_largest[name]}
        parts = (*self._terms.values(), *summed.values(), *self._entropies.values())
        packed = torch.tensor(list(map(_sum, _read(parts))), dtype=torch.float64, device=place)
        world.sum_flat_([packed, *self._counts.values()])
        found = iter(packed.tolist())
        terms = {name: next(found) for name in self._terms}
        metrics = {name: next(found) for name in summed}
        entropies = {layer: next(found) for layer in self._entropies}
        if largest:
            highest = list(map(max, _read(list(largest.values()))))
            packed = world.max_(torch.tensor(highest, dtype=torch.float64, device=place))
            metrics |= dict(zip(largest, packed.tolist(), strict=True))
        counts = dict(zip(self._counts, _rows(list(self._counts.values())), strict=True))
        return Totals(
            terms,
            metrics,
            {layer: tokens[:-1] for layer, tokens in counts.items()},
            {layer: entropies[layer] / max(1, tokens[-1]) for layer, tokens in counts.items()},
        )

    def _add_routing(self, layer: int, routing: Routing) -> None:
        entropies_ME = torch.special.entr(routing.probs_ME.detach())
        counts_E = routing.counts()
        tokens_1 = torch.full_like(counts_E[:1], len(entropies_ME))
        if routing.text_M is not None:
            entropies_ME = torch.where(routing.text_M.unsqueeze(-1), entropies_ME, 0.0)
            tokens_1 = routing.text_M.sum(dim=0, keepdim=True)
        self._entropies.setdefault(layer, []).append(entropies_ME.sum())
        counts_E1 = torch.cat((counts_E, tokens_1))
        held_E1 = self._counts.get(layer)
        self._counts[layer] = counts_E1 if held_E1 is None else held_E1 + counts_E1


def _sum(numbers: Sequence[float]) -> float:
    """Add up without rounding; what is not finite stays so."""
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)


def _read(parts: Sequence[Sequence[Number]]) -> list[list[float]]:
    """Bring numbers to the CPU, all of a device and dtype in one transfer."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for values in parts:
        for value in values:
            if isinstance(value, Tensor):
                kinds.setdefault((value.device, value.dtype), []).append(value)
    read = {kind: iter(torch.stack(scalars).tolist()) for kind, scalars in kinds.items()}
    return [
        [next(read[v.device, v.dtype]) if isinstance(v, Tensor) else v for v in values]
        for values in parts
    ]


def _rows(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Bring rows of integers to the CPU in one transfer."""
    if not tensors:
        return []
    read = iter(torch.cat(list(tensors)).tolist())
    return [[next(read) for _ in range(len(tensor))] for tensor in tensors]
