"""Losses that spread the load of experts: V2's three levels and V3's sequence-wise one.

Sources: DeepSeek-V2 report (arXiv 2405.04434), section 2.2.2, equations 23-31; DeepSeek-V3 report
(arXiv 2412.19437), equations 17-20. With even load and even affinities each loss equals its alpha,
except the communication loss, which then equals alpha times the mean number of devices a token
reaches over its limit. Padding counts nowhere, and a sequence of nothing else is none.

Shapes: B sequences, T tokens of one, M = B * T, E experts, K experts per token, G groups (devices).
"""

import torch
from torch import Tensor

from ziphius.models.config import ModelConfig
from ziphius.models.gates.gate import Routing


def balance_loss(config: ModelConfig, routings: dict[int, Routing], num_sequences: int) -> Tensor:
    """Add up the weighted balance losses of all expert layers, a scalar.

    Args:
        config: its three alphas say which losses count and how much.
        routings: by layer, as the forward pass left them.
        num_sequences: rows B of the batch; V3's loss and V2's `seq_aux` are taken per row.
    """
    assert routings, "a model without expert layers has nothing to balance"
    total = torch.zeros((), device=next(iter(routings.values())).probs_ME.device)
    for routing in routings.values():
        if config.aux_loss_alpha:
            rows = num_sequences if config.seq_aux else 1
            total = total + config.aux_loss_alpha * expert_loss(routing, rows)
        if config.device_loss_alpha:
            total = total + config.device_loss_alpha * device_loss(routing, config.n_group)
        if config.communication_loss_alpha:
            total = total + config.communication_loss_alpha * communication_loss(
                routing, config.n_group, config.topk_group
            )
    return total


def expert_loss(routing: Routing, num_sequences: int) -> Tensor:
    """Return sum_i f_i P_i of the experts, averaged over the sequences; 1 when even."""
    f_BE, p_BE = _load_and_affinity(routing, num_sequences)
    loss_B = (f_BE * p_BE).sum(dim=-1)
    if routing.text_M is None:
        return loss_B.mean()
    sequences = routing.text_M.view(num_sequences, -1).any(dim=1).sum()
    return loss_B.sum() / sequences.clamp(min=1)


def device_loss(routing: Routing, num_groups: int) -> Tensor:
    """Return sum over devices of (mean f of its experts) * (sum of their P); 1 when even."""
    f_BE, p_BE = _load_and_affinity(routing, 1)
    f_G: Tensor = f_BE[0].unflatten(0, (num_groups, -1)).mean(dim=-1)
    p_G: Tensor = p_BE[0].unflatten(0, (num_groups, -1)).sum(dim=-1)
    return (f_G * p_G).sum()


def communication_loss(routing: Routing, num_groups: int, top_groups: int) -> Tensor:
    """Return sum over devices of (share of tokens sent there, over the limit) * (sum of P)."""
    num_experts = routing.probs_ME.shape[1]
    device_MK = routing.preferred_MK // (num_experts // num_groups)
    sent_MG = torch.zeros_like(routing.probs_ME[:, :num_groups]).scatter(1, device_MK, 1.0)
    sent_1G, probs_1E = (_means(x_MX, routing.text_M, 1) for x_MX in (sent_MG, routing.probs_ME))
    f_G = sent_1G[0] * num_groups / top_groups
    p_G: Tensor = probs_1E[0].unflatten(0, (num_groups, -1)).sum(dim=-1)
    return (f_G * p_G).sum()


def _load_and_affinity(routing: Routing, num_sequences: int) -> tuple[Tensor, Tensor]:
    """Return f [B, E], the share of picks times E, and P [B, E], the mean affinity."""
    num_experts = routing.probs_ME.shape[1]
    picks_BX = routing.preferred_MK.view(num_sequences, -1)
    ones_BX = torch.ones_like(picks_BX, dtype=torch.float32)
    picked_B1: Tensor | int = picks_BX.shape[1]
    if routing.text_M is not None:
        per_token = routing.preferred_MK.shape[1]
        ones_BX = routing.text_M.repeat_interleave(per_token).view_as(picks_BX).float()
        picked_B1 = ones_BX.sum(dim=1, keepdim=True).clamp(min=1.0)
    zeros_BE = ones_BX.new_zeros(num_sequences, num_experts)
    f_BE = zeros_BE.scatter_add(1, picks_BX, ones_BX) * num_experts / picked_B1
    return f_BE, _means(routing.probs_ME, routing.text_M, num_sequences)


def _means(x_MX: Tensor, text_M: Tensor | None, num_sequences: int) -> Tensor:
    """Average over the tokens of each sequence [B, X], padding left out; 0 where none is left."""
    x_BTX = x_MX.view(num_sequences, -1, x_MX.shape[1])
    if text_M is None:
        return x_BTX.mean(dim=1)
    text_BT1 = text_M.view(num_sequences, -1, 1)
    return torch.where(text_BT1, x_BTX, 0.0).sum(dim=1) / text_BT1.sum(dim=1).clamp(min=1)
