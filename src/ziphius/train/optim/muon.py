"""Muon for matrices, AdamW for all else: K. Jordan et al. (2024), scaled as in arXiv 2502.16982.

The update of a matrix is its running mean of gradients, brought near the closest matrix whose
singular values are all 1 by a polynomial in products alone (Newton-Schulz). Such a matrix of r rows
and c columns has the root mean square 1 / sqrt(max(r, c)); it is scaled to a fixed one, so that
one learning rate and weight decay suit Muon's and AdamW's parameters.

Stacked experts are batches of matrices, and a stacked gate_up_proj is two batches: on disk these
are separate weights.

Shapes: E matrices of a stack, r rows, c columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ziphius.train.optim.adamw import AdamW, gradient_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: chosen for a steep start, so singular values end in about 0.7 to 1.2."""


STACKED = 2**24
"""Numbers of a parameter that keep an accelerator busy by themselves; larger ones go one by one."""


class Muon(AdamW):
    """Update groups of matrices with Muon and the others with AdamW.

    The state of Muon's parameters is the tensor `momentum`, in float32.

    Args:
        groups: parameter groups with `weight_decay` and `matrices`, the number of matrices that
            stand one above the other in each parameter: 1, 2, or 0 for AdamW.
        momentum: decay of the running mean, applied Nesterov's way.
        update_rms: root mean square of the update before the learning rate.
        newton_schulz_steps: iterations.
        adamw: what `AdamW` takes.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        update_rms: float,
        newton_schulz_steps: int,
        **adamw: Any,
    ) -> None:
        self.momentum, self.update_rms = momentum, update_rms
        self.newton_schulz_steps = newton_schulz_steps
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters in place, at each group's `lr`."""
        assert closure is None, "the loop computes gradients before it steps"
        for group in self.param_groups:
            if not group["matrices"]:
                self.step_group(group)
                continue
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            for alike in _alike(updated):
                self._step_matrices(alike, group)

    def _step_matrices(self, alike: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape."""
        gradients = [gradient_of(parameter).float() for parameter in alike]
        means = [self._momentum_of(parameter) for parameter in alike]
        torch._foreach_lerp_(means, gradients, 1.0 - self.momentum)
        ahead = torch._foreach_lerp(gradients, means, self.momentum)
        # One matrix stays one: other kernels multiply a stack of one, and round otherwise.
        stacked = torch.stack(ahead) if len(ahead) > 1 else ahead[0]
        parts = stacked.chunk(group["matrices"], dim=-2)
        update = torch.cat([self._orthogonal(part) for part in parts], dim=-2)
        updates = list(update.to(alike[0].dtype)) if len(ahead) > 1 else [update.to(alike[0].dtype)]
        torch._foreach_mul_(alike, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(alike, updates, alpha=-group["lr"])

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
        return state["momentum"]

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        scale = self.update_rms * max(matrix.shape[-2:]) ** 0.5
        orthogonal: Tensor = newton_schulz(matrix, self.newton_schulz_steps).float() * scale
        return orthogonal


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Put small ones together that accelerators shall update at once; a CPU gains nothing by it."""
    found: dict[Any, list[Tensor]] = {}
    for place, parameter in enumerate(parameters):
        is_alone = parameter.device.type == "cpu" or parameter.numel() > STACKED
        alone = place if is_alone else None
        key = (alone, parameter.device, parameter.dtype, parameter.shape)
        found.setdefault(key, []).append(parameter)
    return list(found.values())


def newton_schulz(matrix_Erc: Tensor, steps: int) -> Tensor:
    """Bring the singular values of a matrix, or of each of a stack, near 1.

    In bfloat16 on accelerators, which is exact enough here, and in float32 on CPUs, many of which
    have no fast bfloat16.
    """
    a, b, c = COEFFICIENTS
    x_Erc = matrix_Erc if matrix_Erc.device.type == "cpu" else matrix_Erc.bfloat16()
    is_tall = x_Erc.shape[-2] > x_Erc.shape[-1]
    if is_tall:  # the products below are of the shorter side
        x_Erc = x_Erc.mT
    # The Frobenius norm bounds the largest singular value, which must not be above 1.
    x_Erc = x_Erc / x_Erc.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram_Err = x_Erc @ x_Erc.mT
        x_Erc = a * x_Erc + (b * gram_Err + c * gram_Err @ gram_Err) @ x_Erc
    found_Erc: Tensor = x_Erc.mT if is_tall else x_Erc
    return found_Erc
