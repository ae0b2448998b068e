"""Dropless expert dispatch: each token through its K experts, as dense products per expert.

Shapes: M tokens of a batch in one row, K experts per token, E experts, D hidden, F expert width,
Z = M * K token-expert pairs, J rows of the buffer sorted by expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

ALIGNMENT = 8
"""Grouped products read rows of 16 bytes: widths are multiples of this many numbers, and so are
the rows of an expert where they are summed over, in the gradients of the weights."""


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
    dtype = compute_dtype(x_MD)
    if native.serves(x_MD, weights_MK, gate_up_E2FD, down_EDF):
        out_MD: Tensor = native.apply(
            _RoutedExperts, x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF, base_MD, dtype
        )
        return out_MD
    if not x_MD.numel() or not down_EDF.numel():
        # Where nothing is multiplied all has a gradient too, of zeros, as everywhere.
        nothing = [x.flatten()[:0].sum() for x in (x_MD, weights_MK, gate_up_E2FD, down_EDF)]
        routed_MD = torch.zeros_like(x_MD, dtype=dtype) + torch.stack(nothing).sum().to(dtype)
    else:
        kept_MK = torch.where(experts_MK < len(down_EDF), weights_MK, 0.0)
        tensors = _padded(x_MD, gate_up_E2FD, down_EDF)
        routed_MD = native.apply(_GroupedExperts, experts_MK, kept_MK, *tensors, dtype)
        routed_MD = routed_MD[:, : x_MD.shape[1]]
    return routed_MD if base_MD is None else routed_MD + base_MD


def expert_rows(
    x_MD: Tensor, experts_MK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what experts make of tokens, a row for each pair, and the row of each pair, [M, K].

    With `sum_rows` this is `routed_experts` cut in two, bit for bit, for experts that are not all
    there at a time. No gradient passes.

    Args:
        x_MD: tokens.
        experts_MK: chosen experts; the value E marks a pair without a row, whose place means
            nothing.
        gate_up_E2FD: gate rows first, then up rows, of every expert.
        down_EDF: output projections.
    """
    dtype = compute_dtype(x_MD)
    if native.serves(x_MD, gate_up_E2FD, down_EDF):
        order = sort_pairs(experts_MK.contiguous(), len(down_EDF))
        x_MD = x_MD.to(dtype).contiguous()
        rows_JD, _ = experts_forward(x_MD, order, gate_up_E2FD, down_EDF, keep=False)
        return rows_JD, order.slot_MK
    width = x_MD.shape[1]
    x_MD, gate_up_E2FD, down_EDF = _padded(x_MD, gate_up_E2FD, down_EDF)
    plan = _plan(experts_MK, len(down_EDF), 1)
    # Not one row more than the last expert has: how a product is summed may hang on its rows.
    plan.ends_E[-1:].copy_((experts_MK < len(down_EDF)).sum())
    rows_JD, _ = _grouped(x_MD.to(dtype), gate_up_E2FD, down_EDF, plan)
    return rows_JD[:, :width], plan.slot_MK


def sum_rows(
    rows: Sequence[Tensor],
    row_MK: Tensor,
    weights_MK: Tensor,
    base_MD: Tensor | None,
    like_MD: Tensor,
) -> Tensor:
    """Return base + sum over a token's rows of weight * row, [M, D].

    Args:
        rows: what `expert_rows` returned, once or more, each [J, D].
        row_MK: the row of each pair, counted through all of them; one past the end adds nothing.
        weights_MK: of the pairs.
        base_MD: see `routed_experts`.
        like_MD: the tokens, for the shape where there is no row.
    """
    rows_JD = torch.cat(list(rows)) if rows else like_MD[:0].to(compute_dtype(like_MD))
    base_MD = None if base_MD is None else base_MD.to(rows_JD.dtype)
    if native.serves(rows_JD, weights_MK):
        base_MD = None if base_MD is None else base_MD.contiguous()
        return combine(rows_JD.contiguous(), row_MK, weights_MK.float().contiguous(), base_MD)
    routed_MD = torch.zeros_like(like_MD, dtype=rows_JD.dtype)
    if len(rows_JD):
        weights_MK = torch.where(row_MK < len(rows_JD), weights_MK, 0.0)
        picked_MKD = rows_JD[row_MK.clamp(max=len(rows_JD) - 1)]
        routed_MD = (picked_MKD * weights_MK[..., None]).sum(dim=1).to(rows_JD.dtype)
    return routed_MD if base_MD is None else routed_MD + base_MD


def _padded(x_MD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen what `ALIGNMENT` does not divide with zeros, which change no result."""
    _, hidden, width = down_EDF.shape
    further_D, further_F = -hidden % ALIGNMENT, -width % ALIGNMENT
    if not (further_D or further_F):
        return x_MD, gate_up_E2FD, down_EDF
    halves_E2FD = F.pad(gate_up_E2FD.unflatten(1, (2, width)), (0, further_D, 0, further_F))
    return (
        F.pad(x_MD, (0, further_D)),
        halves_E2FD.flatten(1, 2),
        F.pad(down_EDF, (0, further_F, 0, further_D)),
    )


@dataclass(frozen=True)
class _Plan:
    """Where every pair sits in a buffer sorted by expert.

    Its size depends on sizes alone, and nothing here is read by the host: a device that computes
    ahead of it is not made to wait.
    """

    source_J: Tensor
    """Token of every buffer row; token 0 for rows of no pair."""
    slot_MK: Tensor
    """Buffer row of every pair; those of dropped pairs come last."""
    ends_E: Tensor
    """int32: where the rows of each expert end. The last one has all that is left too."""


def _plan(experts_MK: Tensor, num_experts: int, alignment: int) -> _Plan:
    tokens, per_token = experts_MK.shape
    sorted_Z, order_Z = experts_MK.flatten().sort(stable=True)
    device, pairs = sorted_Z.device, tokens * per_token
    # Not `bincount`, which makes the host wait.
    experts_E = torch.arange(num_experts, device=device)
    kept_ends_E = torch.searchsorted(sorted_Z, experts_E, right=True)
    kept_starts_E1 = F.pad(kept_ends_E, (1, 0))
    padded_E = (kept_starts_E1.diff() + alignment - 1) // alignment * alignment
    starts_E1 = F.pad(padded_E.cumsum(0), (1, 0))
    # Each pair moves by the padding that lies before it; after the last expert come dropped pairs.
    moved_E1 = starts_E1 - kept_starts_E1
    slot_sorted_Z = torch.arange(pairs, device=device) + moved_E1[sorted_Z]

    rows = pairs + (alignment - 1) * num_experts
    rows += -rows % alignment
    slot_Z = torch.empty_like(order_Z).scatter_(0, order_Z, slot_sorted_Z)
    source_J = order_Z.new_zeros(rows).scatter_(0, slot_sorted_Z, order_Z // per_token)
    ends_E = starts_E1[1:].to(torch.int32)
    ends_E[-1:].fill_(rows)
    return _Plan(source_J, slot_Z.view(tokens, per_token), ends_E)


def _grouped(
    x_MD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, plan: _Plan
) -> tuple[Tensor, Tensor]:
    """Return what experts make of the rows of a plan, and gate and up before it."""
    dtype = x_MD.dtype
    gate_up, down = gate_up_E2FD.to(dtype).contiguous(), down_EDF.to(dtype).contiguous()
    gate_up_J2F = F.grouped_mm(x_MD[plan.source_J], gate_up.mT, offs=plan.ends_E)
    inner_JF = swiglu(*gate_up_J2F.chunk(2, dim=-1))
    return F.grouped_mm(inner_JF, down.mT, offs=plan.ends_E), gate_up_J2F


class _GroupedExperts(torch.autograd.Function):
    """PyTorch's grouped products, one for each projection of all experts.

    In bfloat16 on GPUs of compute capability 9 and 10 each is one kernel. In other dtypes and on
    other devices PyTorch goes from expert to expert itself, and makes the host wait for their ends.
    Tokens go to their rows and back by reading alone, in both passes: sums have one order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        experts_MK: Tensor,
        weights_MK: Tensor,
        x_MD: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        plan = _plan(experts_MK, len(down_EDF), ALIGNMENT if any(ctx.needs_input_grad) else 1)
        ctx.input_dtype = x_MD.dtype
        x_MD = x_MD.to(dtype)
        out_JD, gate_up_J2F = _grouped(x_MD, gate_up_E2FD, down_EDF, plan)
        ctx.save_for_backward(
            *(plan.source_J, plan.slot_MK, plan.ends_E),
            *(weights_MK, x_MD, gate_up_E2FD, down_EDF, gate_up_J2F),
        )
        return (out_JD[plan.slot_MK] * weights_MK[..., None]).sum(dim=1).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        source_J, slot_MK, ends_E, weights_MK, x_MD, gate_up_E2FD, down_EDF, gate_up_J2F = (
            ctx.saved_tensors
        )
        _, _, needs_x, needs_gate_up, needs_down, _ = ctx.needs_input_grad
        grad_JD = grad_MD.to(x_MD.dtype)[source_J]
        gate_JF, up_JF = gate_up_J2F.chunk(2, dim=-1)
        silu_JF = F.silu(gate_JF)
        inner_JF = silu_JF * up_JF
        # Rows of no pair have the gradient of token 0 and the weight 0.
        weight_J1 = torch.zeros_like(source_J, dtype=weights_MK.dtype)
        weight_J1.scatter_(0, slot_MK.flatten(), weights_MK.flatten())
        weight_J1 = weight_J1.to(x_MD.dtype).unsqueeze(1)

        grad_inner_JF = F.grouped_mm(grad_JD, down_EDF.to(x_MD.dtype).contiguous(), offs=ends_E)
        # grad . down(inner) = down^T(grad) . inner: what the down projection gave is not kept.
        grad_weights_J = (grad_inner_JF * inner_JF).sum(dim=-1, dtype=weights_MK.dtype)
        grad_down = grad_gate_up = grad_x = None
        if needs_down:
            grad_down = F.grouped_mm(grad_JD.mT, inner_JF * weight_J1, offs=ends_E)
            grad_down = grad_down.to(down_EDF.dtype)
        grad_inner_JF = grad_inner_JF * weight_J1
        grad_gate_JF = torch.ops.aten.silu_backward(grad_inner_JF * up_JF, gate_JF)
        grad_J2F = torch.cat((grad_gate_JF, grad_inner_JF * silu_JF), dim=-1)
        if needs_gate_up:
            grad_gate_up = F.grouped_mm(grad_J2F.mT, x_MD[source_J], offs=ends_E)
            grad_gate_up = grad_gate_up.to(gate_up_E2FD.dtype)
        if needs_x:
            gate_up = gate_up_E2FD.to(x_MD.dtype).contiguous()
            grad_rows_JD = F.grouped_mm(grad_J2F, gate_up, offs=ends_E)
            grad_x = grad_rows_JD[slot_MK].sum(dim=1).to(ctx.input_dtype)
        return None, grad_weights_J[slot_MK], grad_x, grad_gate_up, grad_down, None


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
