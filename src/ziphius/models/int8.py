"""Layers whose weights are kept, and multiplied, as INT8 (`ops/int8.py`): projections and experts.

They take the place of the float layers they are made from and have their names, so that a state
dict differs in the types of `weight` alone and in the scales beside it, `weight_scale`. For
inference: no gradient passes.

Shapes: D inputs, N outputs, M tokens, K experts per token, E experts, F expert width.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ziphius.ops.int8 import dequantize_rows, int8_experts, int8_linear, quantize_rows

SCALE = "_scale"
"""Ends the name of the scales of an INT8 weight."""


class Int8Layer(nn.Module):
    """Holds INT8 weights, each with a float32 scale per row."""

    def keep(self, name: str, weight: Tensor) -> None:
        """Quantize a weight [..., N, D] and hold it; on the meta device, reserve its room."""
        if weight.is_meta:
            numbers = torch.empty_like(weight, dtype=torch.int8)
            scale = weight.new_empty(*weight.shape[:-1], 1, dtype=torch.float32)
        else:
            numbers, scale = quantize_rows(weight.detach())
        # Not by `register_buffer`, which a property of the name would refuse.
        self._buffers[name] = numbers
        self._buffers[name + SCALE] = scale

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the numbers and the scales of a weight."""
        numbers, scale = self._buffers[name], self._buffers[name + SCALE]
        assert numbers is not None
        assert scale is not None
        return numbers, scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `to` and its like move the scales but not round them."""
        exact = {name: value for name, value in self._buffers.items() if name.endswith(SCALE)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in exact.items():
            moved = self._buffers[name]
            assert scale is not None
            assert moved is not None
            if moved.dtype != torch.float32:
                self._buffers[name] = scale.to(moved.device)
        return self


class Int8Linear(Int8Layer):
    """A projection with an INT8 weight [N, D]; its bias stays float."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.keep("weight", linear.weight)
        self.bias = linear.bias

    def forward(self, x_D: Tensor) -> Tensor:
        """Project the last dimension; activations are quantized by token, as they come."""
        return int8_linear(x_D, *self.kept("weight"), self.bias)

    @property
    def weight(self) -> Tensor:
        """Return the matrix that the numbers stand for, float32: for what needs a float weight."""
        return dequantize_rows(*self.kept("weight"))


class Int8Experts(Int8Layer):
    """All routed experts of a layer, INT8: `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F]."""

    def __init__(self, gate_up_E2FD: Tensor, down_EDF: Tensor) -> None:
        super().__init__()
        self.keep("gate_up_proj", gate_up_E2FD)
        self.keep("down_proj", down_EDF)

    def forward(
        self, x_MD: Tensor, experts_MK: Tensor, weights_MK: Tensor, base_MD: Tensor | None = None
    ) -> Tensor:
        """Add up each token's experts by weight, on top of `base_MD`, [M, D]."""
        gate_up, down = self.kept("gate_up_proj"), self.kept("down_proj")
        out_MD = int8_experts(x_MD, experts_MK, weights_MK, gate_up, down)
        return out_MD if base_MD is None else out_MD + base_MD


def has_int8(model: nn.Module) -> bool:
    """Tell whether a model has INT8 layers."""
    return any(isinstance(module, Int8Layer) for module in model.modules())
