"""Hold functions of `ops/` that run as native kernels to their PyTorch twins."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ziphius.ops import native

# float32: the order of sums. bfloat16: both sides round, the twin at every step between.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed and the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Return outputs and gradients of the kernels and of the twin, as float32 tensors."""
    results = []
    for twin in (False, True):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        with monkeypatch.context() as patch:
            if twin:
                patch.setattr(native, "serves", lambda *tensors: False)
            outputs = function(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.backward(
                outputs, [draw(*out.shape, dtype=out.dtype, seed=9) for out in outputs]
            )
        grads = [leaf.grad for leaf in leaves if leaf.requires_grad]
        results.append([x.detach().float() for x in (*outputs, *grads)])
    return results


def assert_equal_within(
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    bound: float,
    *,
    spread: float = 0.0,
) -> None:
    """Compare norms of differences with those of the twin's numbers.

    Args:
        monkeypatch: switches the kernels off for the twin.
        function: of the inputs; one tensor or a tuple.
        inputs: what it is called with; those of float type get a gradient.
        bound: relative difference allowed.
        spread: what each number may be taken to be worth where few of them cancel out.
    """
    ours, twins = both_ways(monkeypatch, function, inputs)
    for own, twin in zip(ours, twins, strict=True):
        assert own.shape == twin.shape
        assert own.isfinite().all()
        difference, norm = (own - twin).norm(), twin.norm() + spread * twin.numel() ** 0.5
        assert difference <= bound * norm, difference / norm
