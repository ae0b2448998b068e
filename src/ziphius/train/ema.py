"""A running average of the weights, in float32: what DeepSeek-V3 keeps to judge a run early.

Source: arXiv 2412.19437, section 3.2.3. Router biases are not averaged: they balance the load of
the weights of now and are close to those of a moment ago.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from ziphius.models.model import Model


class Ema:
    """The averages of what is trained, under its names in `tensors`; frozen weights are theirs."""

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.tensors = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in _trained(model)
        }

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Take in the weights after a step.

        The decay grows with the steps, so that the first weights are soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(_trained(model))
        held = [self.tensors[name] for name in named]
        torch._foreach_lerp_(held, [p.detach().float() for p in named.values()], 1.0 - decay)

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Put the averages into the model for the length of a block, and the weights back."""
        held = {name: parameter.detach().clone() for name, parameter in _trained(model)}
        try:
            _fill(model, self.tensors)
            yield
        finally:
            _fill(model, held)


@torch.no_grad()
def _fill(model: Model, tensors: dict[str, Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(tensors[name])


def _trained(model: Model) -> list[tuple[str, Parameter]]:
    return [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
