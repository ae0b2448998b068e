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

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype
from ziphius.ops.swiglu import swiglu, swiglu_backward, swiglu_forward

# oneDNN compiles a kernel for every row count it has not seen (about 0.5 ms each); rows in
# multiples of 64 make the counts repeat.
ROW_ALIGNMENT = 64


def routed_experts(
    x_MD: Tensor,
    experts_MK: Tensor,
    weights_MK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
) -> Tensor:
    """Return sum over a token's experts of weight * down(silu(gate(x)) * up(x)), [M, D].

    Args:
        x_MD: tokens.
        experts_MK: chosen experts; the value E marks a dropped pair, which adds nothing.
        weights_MK: weights of the chosen experts.
        gate_up_E2FD: gate rows first, then up rows, of every expert.
        down_EDF: output projections.
    """
    plan = _plan(experts_MK, gate_up_E2FD.shape[0])
    if native.serves(x_MD, weights_MK) and torch.is_grad_enabled():
        out_MD: Tensor = native.apply(
            _RoutedExperts, x_MD, weights_MK, gate_up_E2FD, down_EDF, plan, compute_dtype(x_MD)
        )
        return out_MD
    return _reference(x_MD, weights_MK, gate_up_E2FD, down_EDF, plan)


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
        if segment.shape[0]:
            gate, up = F.linear(segment, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(swiglu(gate, up), down))
    outputs.append(x_MD.new_zeros(1, x_MD.shape[1]))  # the row of every dropped pair
    out_MKD = torch.cat(outputs)[plan.slot_MK]
    return (out_MKD * weights_MK[..., None]).sum(dim=1).to(x_MD.dtype)


class _RoutedExperts(torch.autograd.Function):
    """The same with its own backward: gathers instead of scatters, and no product is repeated."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MD: Tensor,
        weights_MK: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        plan: _Plan,
        dtype: torch.dtype,
    ) -> Tensor:
        w1_E2FD, w2_EDF = gate_up_E2FD.to(dtype), down_EDF.to(dtype)
        weights_MK = weights_MK.float().contiguous()
        x_JD = x_MD.to(dtype)[plan.source_J]
        rows, width = x_JD.shape[0], w2_EDF.shape[2]
        gate_up_J2F = x_JD.new_empty(rows, 2 * width)
        for expert, start, end in plan.segments:
            torch.mm(x_JD[start:end], w1_E2FD[expert].t(), out=gate_up_J2F[start:end])
        hidden_JF = x_JD.new_empty(rows, width)
        swiglu_forward(gate_up_J2F, hidden_JF)
        out_JD = torch.empty_like(x_JD)
        for expert, start, end in plan.segments:
            torch.mm(hidden_JF[start:end], w2_EDF[expert].t(), out=out_JD[start:end])
        out_MD = x_JD.new_empty(x_MD.shape)
        _combine(out_JD, plan.slot_MK, weights_MK, out_MD)
        ctx.plan, ctx.input_dtype = plan, x_MD.dtype
        ctx.save_for_backward(weights_MK, w1_E2FD, w2_EDF, x_JD, gate_up_J2F, hidden_JF, out_JD)
        return out_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        weights_MK, w1_E2FD, w2_EDF, x_JD, gate_up_J2F, hidden_JF, out_JD = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_out_JD = torch.zeros_like(out_JD)  # padding rows must stay 0
        grad_weights_MK = torch.empty_like(weights_MK)
        tokens, per_token = plan.slot_MK.shape
        native.call(
            "combine_backward",
            native.SUFFIXES[out_JD.dtype],
            grad_MD.to(out_JD.dtype).contiguous(),
            out_JD,
            out_JD.shape[0],
            plan.slot_MK,
            weights_MK,
            grad_out_JD,
            grad_weights_MK,
            tokens,
            per_token,
            out_JD.shape[1],
        )
        grad_hidden_JF = torch.empty_like(hidden_JF)
        grad_w2_EDF = torch.zeros_like(w2_EDF)
        for expert, start, end in plan.segments:
            grad_rows = grad_out_JD[start:end]
            torch.mm(grad_rows, w2_EDF[expert], out=grad_hidden_JF[start:end])
            torch.mm(grad_rows.t(), hidden_JF[start:end], out=grad_w2_EDF[expert])
        grad_gate_up_J2F = torch.empty_like(gate_up_J2F)
        swiglu_backward(grad_hidden_JF, gate_up_J2F, grad_gate_up_J2F)
        grad_x_JD = torch.empty_like(x_JD)
        grad_w1_E2FD = torch.zeros_like(w1_E2FD)
        for expert, start, end in plan.segments:
            grad_rows = grad_gate_up_J2F[start:end]
            torch.mm(grad_rows, w1_E2FD[expert], out=grad_x_JD[start:end])
            torch.mm(grad_rows.t(), x_JD[start:end], out=grad_w1_E2FD[expert])
        grad_x_MD = torch.empty(grad_MD.shape, dtype=x_JD.dtype)
        _combine(grad_x_JD, plan.slot_MK, None, grad_x_MD)
        return (
            grad_x_MD.to(ctx.input_dtype),
            grad_weights_MK,
            grad_w1_E2FD.float(),
            grad_w2_EDF.float(),
            None,
            None,
        )


def _combine(rows_JD: Tensor, slot_MK: Tensor, weights_MK: Tensor | None, out_MD: Tensor) -> None:
    """Fill each token of `out_MD` with the weighted sum of its rows."""
    tokens, per_token = slot_MK.shape
    native.call(
        "combine",
        native.SUFFIXES[rows_JD.dtype],
        rows_JD,
        rows_JD.shape[0],
        slot_MK,
        weights_MK,
        out_MD,
        tokens,
        per_token,
        rows_JD.shape[1],
    )
