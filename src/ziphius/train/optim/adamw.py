"""AdamW (arXiv 1711.05101) through PyTorch's fused kernel, its means in float32 or bfloat16.

DeepSeek-V3 keeps both means in bfloat16 (arXiv 2412.19437, section 3.3.3): they are widened for the
update and rounded afterwards; with beta2 = 0.95 a step changes them by more than bfloat16 rounds
away.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """Update every parameter that has a gradient.

    The state of a parameter is the tensors `step`, `exp_avg` and `exp_avg_sq`.

    Args:
        groups: parameter groups, each with `weight_decay`.
        moments: dtype of the two means.
        betas: decays of the two means.
        eps: added to the root of the second.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        moments: torch.dtype,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.moments = moments
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters in place, at each group's `lr`."""
        assert closure is None, "the loop computes gradients before it steps"
        for group in self.param_groups:
            self.step_group(group)

    def step_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group in place."""
        updated = [parameter for parameter in group["params"] if parameter.grad is not None]
        if self.moments == torch.float32:
            self._update(group, updated)
        else:
            for parameter in updated:  # one at a time, so that one is held wide at a time
                self._update(group, [parameter])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; the means keep their dtype, which torch widens."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in {"exp_avg", "exp_avg_sq"} & state.keys():
                state[name] = state[name].to(self.moments)

    def _update(self, group: dict[str, Any], updated: list[Tensor]) -> None:
        states = [self._state_of(parameter) for parameter in updated]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        wide_means = [mean.float() for mean in means]  # the same tensor if it is float32
        wide_squares = [square.float() for square in squares]
        adamw(
            updated,
            [gradient_of(parameter) for parameter in updated],
            wide_means,
            wide_squares,
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if self.moments != torch.float32:
            torch._foreach_copy_(means, wide_means)
            torch._foreach_copy_(squares, wide_squares)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.moments)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moments)
        return state


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad
