"""Steps whitened by Kronecker factors of the gradient's own covariance, for policy gradients.

The gradient of a sampled answer's log-probability is mostly noise, and its covariance is the Fisher
matrix of the policy (Kakade 2001): the directions in which the noise is largest are those in which
a small step changes most of what the model says. Plain and diagonally scaled steps spend themselves
there. For a matrix with gradient G the covariance is taken as the product of E[G G^T] and E[G^T G]
(Shampoo, arXiv 1802.09568), each to the power -1/2 (Morwani et al., arXiv 2406.17748).

It is not the natural gradient proper, which has the power -1 of each (K-FAC; ACKTR, arXiv
1708.05144), and parameters of different shapes are not in Fisher's proportion: the update of all
together is scaled to a root mean square of 1, of which norms took two fifths of the square in one
run. docs/lab/2026-11-27-what-grpo-can-teach.md says what is known and what is not.

Shapes: E matrices of a stack, r rows, c columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ziphius.core.device import float64_device

ITERATIONS = 16
"""Of the inverse root: enough for a damping of 1e-4, the least there may be."""
FLOOR = 1e-20
"""Added to sums of squares, so that a matrix that never had a gradient divides by something."""


class Natural(Optimizer):
    """Update every parameter that has a gradient by its preconditioned running mean.

    The state of a parameter is the tensors `step`, `momentum`, `rows` and `columns` (the running
    covariances) and `rows_root`, `columns_root` (the powers -1/2 of what they were at the last
    refresh, scaled to a trace of 1); of a vector `step`, `momentum` and `square`. All are float32.

    Args:
        groups: parameter groups, each with `weight_decay` and `matrices`, the number of matrices
            that stand one above the other in each parameter; 0 counts as 1.
        momentum: decay of the running mean of gradients.
        covariance: decay of the running covariances.
        damping: added to their eigenvalues, as a share of the largest.
        refresh_steps: steps between two computations of the roots.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        covariance: float,
        damping: float,
        refresh_steps: int,
    ) -> None:
        self.momentum, self.covariance = momentum, covariance
        self.damping, self.refresh_steps = damping, refresh_steps
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "matrices": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters in place, at each group's `lr`."""
        assert closure is None, "the loop computes gradients before it steps"
        updates = [
            (parameter, group, self._direction(parameter, group["matrices"] or 1))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        count = sum(direction.numel() for _, _, direction in updates)
        squares = sum((direction.square().sum() for _, _, direction in updates), torch.zeros(()))
        scale = float((count / squares.clamp(min=FLOOR)).sqrt())
        for parameter, group, direction in updates:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * scale)

    def covariance_shapes(self, parameter: Tensor) -> set[torch.Size]:
        """Return the shapes of the covariances of a parameter's rows and columns."""
        if parameter.dim() < 2:
            return set()
        matrices = next(
            group["matrices"] or 1
            for group in self.param_groups
            if any(parameter is member for member in group["params"])
        )
        *stack, rows, columns = parameter.shape
        sides = (rows // matrices, columns)
        return {torch.Size((matrices, *stack, side, side)) for side in sides}

    def _direction(self, parameter: Tensor, matrices: int) -> Tensor:
        """Take the gradient in, and return the preconditioned mean."""
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1.0 - self.momentum)
        if parameter.dim() < 2:
            square = _running(state, "square", gradient.square(), self.covariance)
            return state["momentum"] / (square + self.damping * square.amax() + FLOOR)
        parts = torch.stack(gradient.chunk(matrices, dim=-2))
        rows = _running(state, "rows", parts @ parts.mT, self.covariance)
        columns = _running(state, "columns", parts.mT @ parts, self.covariance)
        # Often at first, when the covariances are still made of few gradients.
        step = int(state["step"])
        if step % self.refresh_steps == 0 or step < self.refresh_steps:
            state["rows_root"] = inverse_root(_of_trace_1(rows), self.damping)
            state["columns_root"] = inverse_root(_of_trace_1(columns), self.damping)
        mean = torch.stack(state["momentum"].chunk(matrices, dim=-2))
        # Sizes are those of now: an expert may meet its first gradient between two refreshes.
        sizes = _trace(rows).sqrt() * _trace(columns).sqrt()
        found = state["rows_root"] @ mean @ state["columns_root"] / sizes
        return torch.cat(tuple(found), dim=-2)


def _running(state: dict[str, Tensor], name: str, fresh: Tensor, decay: float) -> Tensor:
    """Average with what was seen before: evenly at first, later with the decay."""
    if name not in state:
        state[name] = torch.zeros_like(fresh)
    weight = max(1.0 - decay, 1.0 / float(state["step"]))
    return state[name].lerp_(fresh, weight)


def _trace(covariance_Err: Tensor) -> Tensor:
    """Return the sums of the eigenvalues [E, 1, 1], above 0."""
    return covariance_Err.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + FLOOR


def _of_trace_1(covariance_Err: Tensor) -> Tensor:
    """Scale matrices; one that never had a gradient becomes the identity.

    So its first gradient, should no refresh come with it, makes a step as large as with one.
    """
    identity_rr = torch.eye(
        covariance_Err.shape[-1], dtype=covariance_Err.dtype, device=covariance_Err.device
    )
    return (covariance_Err + FLOOR * identity_rr) / _trace(covariance_Err)


def inverse_root(covariance_Err: Tensor, damping: float) -> Tensor:
    """Return the power -1/2 of symmetric matrices, their eigenvalues raised by the damping.

    By the coupled iteration of Newton and Schulz (Higham 2008, section 6.7) in float64, which needs
    products alone; LAPACK's eigenvectors do not converge on covariances with many rows of zeros.

    Args:
        covariance_Err: positive semidefinite.
        damping: what is added, as a share of the largest eigenvalue.
    """
    device = covariance_Err.device
    wide_Err = covariance_Err.to(float64_device(device), torch.float64)
    largest_E11 = _largest_eigenvalue(wide_Err)[..., None, None].clamp(min=FLOOR)
    identity_rr = torch.eye(wide_Err.shape[-1], dtype=torch.float64, device=wide_Err.device)
    scale_E11 = (1.0 + damping) * largest_E11
    root_Err = (wide_Err + damping * largest_E11 * identity_rr) / scale_E11
    inverse_Err = identity_rr.expand_as(root_Err)
    for _ in range(ITERATIONS):
        half_Err = 1.5 * identity_rr - 0.5 * inverse_Err @ root_Err
        root_Err, inverse_Err = root_Err @ half_Err, half_Err @ inverse_Err
    return (inverse_Err / scale_E11.sqrt()).to(device, torch.float32)


def _largest_eigenvalue(matrix_Err: Tensor) -> Tensor:
    """Bound the largest eigenvalue from above, closely: the largest sum of a row's sizes, squared.

    ||A||_2 <= ||A^4||_inf^(1/4) for symmetric A, which is within r^(1/8) of it.
    """
    scale_E = matrix_Err.abs().sum(-1).amax(-1).clamp(min=FLOOR)
    power_Err = matrix_Err / scale_E[..., None, None]
    power_Err = power_Err @ power_Err
    power_Err = power_Err @ power_Err
    return scale_E * power_Err.abs().sum(-1).amax(-1).clamp(min=0.0) ** 0.25
