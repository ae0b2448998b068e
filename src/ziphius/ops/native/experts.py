"""Kernels of `experts.cpp`: rows through their experts, forward and backward.

Shapes: M tokens, K experts per token, E experts, D hidden, F expert width, Z pairs that are kept.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, own_address
from ziphius.ops.native.routing import SortedPairs

_EXPERTS_FORWARD = Kernel(
    "experts_forward",
    "const T* x, const int64_t* pairs, const int64_t* offsets, const U* gate_up_weights, "
    "const U* down_weights, T* gate_up, T* out, int64_t tokens, int64_t per_token, int64_t kept, "
    "int64_t experts, int64_t hidden, int64_t width",
    kinds=("ff", "bf", "bb"),
    returns="int64_t",
)
_EXPERTS_BACKWARD = Kernel(
    "experts_backward",
    "const T* grad, const T* x, const int64_t* pairs, const int64_t* offsets, "
    "const float* pair_weights, const T* gate_up, const U* gate_up_weights, "
    "const U* down_weights, T* grad_rows, float* grad_pair_weights, float* grad_gate_up, "
    "float* grad_down, int64_t tokens, int64_t per_token, int64_t kept, int64_t experts, "
    "int64_t hidden, int64_t width",
    kinds=("ff", "bf", "bb"),
    returns="int64_t",
)


def experts_forward(
    x_MD: Tensor, order: SortedPairs, gate_up_E2FD: Tensor, down_EDF: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the output of each pair, not yet weighted, [Z, D]; and gate and up before it.

    Args:
        x_MD: tokens.
        order: the pairs.
        gate_up_E2FD: gate rows first, then up rows, of every expert.
        down_EDF: output projections, of the same dtype.
        keep: whether gate and up, [Z, 2F], will be needed; None otherwise.
    """
    experts, hidden, width = down_EDF.shape
    kind, weights, kept = x_MD.dtype, down_EDF.dtype, order.kept
    tokens, per_token = order.slot_MK.shape
    out_ZD = x_MD.new_empty(kept, hidden)
    gate_up_Z2F = x_MD.new_empty(kept, 2 * width) if keep else None
    failed = _EXPERTS_FORWARD.of(kind, weights)(
        address("tokens", x_MD, kind, (tokens, hidden)),
        *_addresses(order, experts),
        address("gate and up of experts", gate_up_E2FD, weights, (experts, 2 * width, hidden)),
        address("down of experts", down_EDF, weights, (experts, hidden, width)),
        None if gate_up_Z2F is None else own_address(gate_up_Z2F),
        own_address(out_ZD),
        *(tokens, per_token, kept, experts, hidden, width),
    )
    if failed:
        raise ValueError(_BAD_ORDER)
    return out_ZD, gate_up_Z2F


def experts_backward(
    grad_MD: Tensor,
    x_MD: Tensor,
    order: SortedPairs,
    weights_MK: Tensor,
    gate_up_Z2F: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients: of each pair's input [Z, D], of pairs' weights, gate and up, and down.

    Args:
        grad_MD: of the weighted sums, of the tokens' dtype.
        x_MD: tokens.
        order: the pairs.
        weights_MK: float32; the gradient of a dropped pair's is 0.
        gate_up_Z2F: as `experts_forward` keeps it.
        gate_up_E2FD: gate rows first, then up rows; their gradient is float32.
        down_EDF: output projections; their gradient is float32.
    """
    experts, hidden, width = down_EDF.shape
    kind, weights, kept = x_MD.dtype, down_EDF.dtype, order.kept
    tokens, per_token = order.slot_MK.shape
    grad_rows_ZD = x_MD.new_empty(kept, hidden)
    grad_weights_MK = torch.zeros_like(weights_MK)
    grad_gate_up_E2FD = x_MD.new_empty(gate_up_E2FD.shape, dtype=torch.float32)
    grad_down_EDF = x_MD.new_empty(down_EDF.shape, dtype=torch.float32)
    gate_up, down = (experts, 2 * width, hidden), (experts, hidden, width)
    failed = _EXPERTS_BACKWARD.of(kind, weights)(
        address("gradient of tokens", grad_MD, kind, (tokens, hidden)),
        address("tokens", x_MD, kind, (tokens, hidden)),
        *_addresses(order, experts),
        address("weights of pairs", weights_MK, torch.float32, (tokens, per_token)),
        address("gate and up of pairs", gate_up_Z2F, kind, (kept, 2 * width)),
        address("gate and up of experts", gate_up_E2FD, weights, gate_up),
        address("down of experts", down_EDF, weights, down),
        own_address(grad_rows_ZD),
        own_address(grad_weights_MK),
        own_address(grad_gate_up_E2FD),
        own_address(grad_down_EDF),
        *(tokens, per_token, kept, experts, hidden, width),
    )
    if failed:
        raise ValueError(_BAD_ORDER)
    return grad_rows_ZD, grad_weights_MK, grad_gate_up_E2FD, grad_down_EDF


_BAD_ORDER = "the pairs are not in an order that sort_pairs gives: a number is out of its range."


def _addresses(order: SortedPairs, experts: int) -> tuple[int, int]:
    pairs_Z, slot_MK, offsets, _ = order
    return (
        address("sorted pairs", pairs_Z, torch.int64, (slot_MK.numel(),)),
        address("offsets of experts", offsets, torch.int64, (experts + 1,)),
    )
