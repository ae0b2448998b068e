"""Dropless expert dispatch: each token through its K experts, as dense products per expert.

Shapes: M tokens of a batch in one row, K experts per token, E experts, D hidden, F expert width,
Z = M * K token-expert pairs, J rows of the sorted, padded buffer.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native.experts import experts_backward, experts_forward
from ziphius.ops.native.pointwise import combine
from ziphius.ops.native.routing import SortedPairs, sort_pairs
from ziphius.ops.precision import compute_dtype
from ziphius.ops.swiglu import swiglu

# oneDNN compiles a kernel for every row count it has not seen (about 0.5 ms each); rows in
# multiples of 64 make the counts repeat.
ROW_ALIGNMENT = 64


def routed_experts(
    x_MD: Tensor,
    experts_MK: Tensor,
    weights_MK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    base_MD: Tensor | None = None,
) -> Tensor:
    """Return base + sum over a token's experts of weight * down(silu(gate(x)) * up(x)), [M, D].

    Args:
        x_MD: tokens.
        experts_MK: chosen experts; the value E marks a dropped pair, which adds nothing.
        weights_MK: weights of the chosen experts.
        gate_up_E2FD: gate rows first, then up rows, of every expert.
        down_EDF: output projections.
        base_MD: what the sum begins with, as the shared experts' output; zeros without it.
    """
    if native.serves(x_MD, weights_MK, gate_up_E2FD, down_EDF):
        dtype = compute_dtype(x_MD)
        out_MD: Tensor = native.apply(
            _RoutedExperts, x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF, base_MD, dtype
        )
        return out_MD
    plan = _plan(experts_MK, gate_up_E2FD.shape[0])
    out_MD = _reference(x_MD, weights_MK, gate_up_E2FD, down_EDF, plan)
    return out_MD if base_MD is None else out_MD + base_MD


@dataclass(frozen=True)
class _Plan:
    """Where every pair sits in a buffer sorted by expert, each expert's rows padded."""

    source_J: Tensor
    """Token of every buffer row; padding repeats token 0, and its result is never read."""
    slot_MK: Tensor
    """Buffer row of every pair; the row after the last for dropped pairs."""
    rows_per_expert: list[int]

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """Return (expert, first row, row after the last) of the experts that have rows."""
        ends = list(accumulate(self.rows_per_expert))
        spans = zip(range(len(ends)), [0, *ends], ends, strict=False)
        return [(expert, start, end) for expert, start, end in spans if start < end]


def _plan(experts_MK: Tensor, num_experts: int) -> _Plan:
    tokens, per_token = experts_MK.shape
    flat_Z = experts_MK.flatten()
    order_Z = flat_Z.argsort(stable=True)
    counts_E = torch.bincount(flat_Z, minlength=num_experts + 1)
    kept_E = counts_E[:num_experts]
    # Few rows are cheaper unpadded: decoding sends one or two tokens to an expert.
    align = ROW_ALIGNMENT if tokens * per_token >= ROW_ALIGNMENT * num_experts // 4 else 1
    padded_E = (kept_E + align - 1) // align * align

    rank_Z = torch.arange(flat_Z.numel(), device=flat_Z.device)
    sorted_Z = flat_Z[order_Z]
    first_E = counts_E.cumsum(0) - counts_E
    starts_E = torch.cat((padded_E.new_zeros(1), padded_E.cumsum(0)))
    within_Z = torch.where(sorted_Z == num_experts, 0, rank_Z - first_E[sorted_Z])
    slot_sorted_Z = starts_E[sorted_Z] + within_Z

    slot_Z = torch.empty_like(order_Z)
    slot_Z[order_Z] = slot_sorted_Z
    rows_per_expert = padded_E.tolist()
    source_J = order_Z.new_zeros(sum(rows_per_expert) + 1)
    source_J[slot_sorted_Z] = order_Z // per_token
    return _Plan(source_J[:-1], slot_Z.view(tokens, per_token), rows_per_expert)


def _reference(
    x_MD: Tensor, weights_MK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, plan: _Plan
) -> Tensor:
    segments = x_MD[plan.source_J].split(plan.rows_per_expert)
    outputs = []
    # unbind, not indexing: the gradient of all experts is then stacked once, instead of each
    # expert's being added to a zero tensor of the size of all.
    for segment, gate_up, down in zip(
        segments, gate_up_E2FD.unbind(0), down_EDF.unbind(0), strict=True
    ):
        # Where all pairs are dropped, each expert gets the gradient of no rows: zeros, not None.
        if segment.shape[0] or not plan.source_J.numel():
            gate, up = F.linear(segment, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(swiglu(gate, up), down))
    outputs.append(x_MD.new_zeros(1, x_MD.shape[1]))  # the row of every dropped pair
    out_MKD = torch.cat(outputs)[plan.slot_MK]
    return (out_MKD * weights_MK[..., None]).sum(dim=1).to(x_MD.dtype)


class _RoutedExperts(torch.autograd.Function):
    """The same as compiled kernels, which keep what lies between two products in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MD: Tensor,
        experts_MK: Tensor,
        weights_MK: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        base_MD: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        x, weights_MK = x_MD.to(dtype).contiguous(), weights_MK.float().contiguous()
        gate_up_E2FD, down_EDF = gate_up_E2FD.contiguous(), down_EDF.contiguous()
        order = sort_pairs(experts_MK.contiguous(), len(down_EDF))
        is_kept = any(ctx.needs_input_grad)
        out_ZD, gate_up_Z2F = experts_forward(x, order, gate_up_E2FD, down_EDF, keep=is_kept)
        base = None if base_MD is None else base_MD.to(dtype).contiguous()
        ctx.base_dtype = None if base_MD is None else base_MD.dtype
        ctx.kept, ctx.input_dtype = order.kept, x_MD.dtype
        ctx.save_for_backward(x, weights_MK, gate_up_E2FD, down_EDF, gate_up_Z2F, *order[:3])
        return combine(out_ZD, order.slot_MK, weights_MK, base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        x, weights_MK, gate_up_E2FD, down_EDF, gate_up_Z2F, *order = ctx.saved_tensors
        pairs_Z, slot_MK, offsets = order
        grad_rows_ZD, grad_weights_MK, grad_gate_up_E2FD, grad_down_EDF = experts_backward(
            grad_MD.to(x.dtype).contiguous(),
            x,
            SortedPairs(pairs_Z, slot_MK, offsets, ctx.kept),
            weights_MK,
            gate_up_Z2F,
            gate_up_E2FD,
            down_EDF,
        )
        return (
            combine(grad_rows_ZD, slot_MK, None, None).to(ctx.input_dtype),
            None,
            grad_weights_MK,
            grad_gate_up_E2FD.to(gate_up_E2FD.dtype),
            grad_down_EDF.to(down_EDF.dtype),
            None if ctx.base_dtype is None else grad_MD.to(ctx.base_dtype),
            None,
        )
