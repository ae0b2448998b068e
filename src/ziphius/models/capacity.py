"""Token dropping at a device's capacity, in training only: DeepSeek-V2 report, section 2.2.3.

Shapes: M tokens, K experts per token, E experts; a group of experts stands for a device.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ziphius.core.device import with_float64
from ziphius.models.gates.gate import Routing

# "Approximately 10 % of the training sequences" keep all their tokens, so that a model that never
# drops at inference has seen that in training.
EXEMPT_EVERY = 10


def drop_overflow(
    routing: Routing,
    num_groups: int,
    capacity_factor: float,
    sequence_length: int,
    first_row: int = 0,
) -> Routing:
    """Drop the pairs of lowest affinity on every device that exceeds its capacity.

    Pairs of padding, which have the value E already, are on no device and give it no capacity.

    Args:
        routing: of M tokens, in sequences of `sequence_length` one after the other.
        num_groups: devices; experts are spread over them in order.
        capacity_factor: capacity as a multiple of the even share, pairs / devices.
        sequence_length: tokens of a sequence; every tenth sequence is exempt.
        first_row: number of the first sequence in its step, so that it is every tenth of the step
            in however many micro-batches it comes.

    Returns:
        The routing with the value E in place of the dropped experts and 0 as their weight.
    """
    num_experts = routing.probs_ME.shape[1]
    experts_P = routing.experts_MK.flatten()
    # In float64 on the device: the host would have to wait for the count.
    kept = with_float64((experts_P < num_experts).sum()).double()
    capacity = (capacity_factor * kept / num_groups).long().to(experts_P.device)
    device_P = experts_P // (num_experts // num_groups)
    token_P = (
        torch.arange(experts_P.numel(), device=experts_P.device) // routing.experts_MK.shape[1]
    )
    exempt_P = (first_row + token_P // sequence_length) % EXEMPT_EVERY == 0
    chosen_MK = routing.experts_MK.clamp(max=num_experts - 1)
    affinity_P = routing.probs_ME.detach().gather(1, chosen_MK).flatten()
    # Exempt pairs come first and fill the capacity, but are kept beyond it too.
    priority_P = affinity_P + 2.0 * exempt_P
    keep_P = (_rank_within(device_P, priority_P, num_groups + 1) < capacity) | exempt_P
    keep_MK = keep_P.view_as(routing.experts_MK)
    return replace(
        routing,
        experts_MK=torch.where(keep_MK, routing.experts_MK, num_experts),
        weights_MK=torch.where(keep_MK, routing.weights_MK, 0.0),
    )


def _rank_within(group_P: Tensor, priority_P: Tensor, groups: int) -> Tensor:
    """Rank each entry among those of its group, 0 for the highest priority."""
    by_priority_P = priority_P.argsort(descending=True, stable=True)
    order_P = by_priority_P[group_P[by_priority_P].argsort(stable=True)]
    counts_G = group_P.new_zeros(groups).scatter_add_(0, group_P, torch.ones_like(group_P))
    starts_G = counts_G.cumsum(0) - counts_G
    rank_P = torch.empty_like(order_P)
    rank_P[order_P] = (
        torch.arange(order_P.numel(), device=order_P.device) - starts_G[group_P[order_P]]
    )
    return rank_P
