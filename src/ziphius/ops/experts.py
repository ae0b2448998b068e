"""Dropless expert dispatch: each token through its K experts, as dense products per expert.

Shapes: M tokens of a batch in one row, K experts per token, E experts, D hidden, F expert width,
J rows of the sorted, padded buffer (one per kept token-expert pair, plus padding).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    num_experts = gate_up_E2FD.shape[0]
    source_J, slot_MK, rows_per_expert = _plan(experts_MK, num_experts)
    segments = x_MD[source_J].split(rows_per_expert)
    outputs = []
    # unbind, not indexing: the gradient of all experts is then stacked once, instead of each
    # expert's being added to a zero tensor of the size of all.
    for segment, gate_up, down in zip(
        segments, gate_up_E2FD.unbind(0), down_EDF.unbind(0), strict=True
    ):
        if segment.shape[0]:
            gate, up = F.linear(segment, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down))
    outputs.append(x_MD.new_zeros(1, x_MD.shape[1]))  # the row of every dropped pair
    out_MKD = torch.cat(outputs)[slot_MK]
    return (out_MKD * weights_MK[..., None]).sum(dim=1).to(x_MD.dtype)


def _plan(experts_MK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Sort pairs by expert and pad each expert's rows.

    Returns:
        The token of every buffer row (padding repeats token 0, and its result is never read), the
        buffer row of every pair (the row after the last for dropped pairs), and the row counts.
    """
    tokens, per_token = experts_MK.shape
    flat_P = experts_MK.flatten()
    order_P = flat_P.argsort(stable=True)
    counts_E = torch.bincount(flat_P, minlength=num_experts + 1)
    kept_E = counts_E[:num_experts]
    # Few rows are cheaper unpadded: decoding sends one or two tokens to an expert.
    align = ROW_ALIGNMENT if tokens * per_token >= ROW_ALIGNMENT * num_experts // 4 else 1
    padded_E = (kept_E + align - 1) // align * align

    rank_P = torch.arange(flat_P.numel(), device=flat_P.device)
    sorted_P = flat_P[order_P]
    first_E = counts_E.cumsum(0) - counts_E
    starts_E = torch.cat((padded_E.new_zeros(1), padded_E.cumsum(0)))
    within_P = rank_P - first_E[sorted_P]
    dropped_P = sorted_P == num_experts
    slot_sorted_P = starts_E[sorted_P] + torch.where(dropped_P, 0, within_P)

    slot_P = torch.empty_like(order_P)
    slot_P[order_P] = slot_sorted_P
    rows_per_expert = padded_E.tolist()
    source_J = order_P.new_zeros(sum(rows_per_expert) + 1)
    source_J[slot_sorted_P] = order_P // per_token
    return source_J[:-1], slot_P.view(tokens, per_token), rows_per_expert
