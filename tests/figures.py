"""The largest differences that tests saw, which pytest prints at its end beside their bounds.

A test asserts `seen(name, difference, bound)`: so a bound stands in one place, and every figure
of the README has a command that prints it.
"""

import math

import torch
from torch import Tensor

Figures = dict[str, tuple[float, float]]
"""By name: the largest value seen, and its bound."""

_FIGURES: Figures = {}


def seen(name: str, difference: float | Tensor, bound: float) -> bool:
    """Note a difference under a name; tell whether it is within its bound, which NaN is not."""
    value = float(torch.as_tensor(difference).detach())
    largest = _FIGURES.get(name, (0.0, bound))[0]
    # max() would drop a NaN that comes second.
    _FIGURES[name] = (value if math.isnan(value) else max(largest, value), bound)
    return value <= bound


def take_figures() -> Figures:
    """Return what was noted since the last call."""
    taken = dict(_FIGURES)
    _FIGURES.clear()
    return taken
