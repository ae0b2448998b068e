"""Kernels of `routing.cpp`: the best experts of each token, and pairs sorted by expert.

Shapes: M tokens, E experts, K experts per token, Z = M * K token-expert pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, own_address

_TOP_EXPERTS = Kernel(
    "top_experts",
    "const float* scores, int64_t* chosen, int64_t tokens, int64_t experts, int64_t groups, "
    "int64_t best_groups, int64_t judges, int64_t top",
    kinds=("",),
)
_SORT_PAIRS = Kernel(
    "sort_pairs",
    "const int64_t* chosen, int64_t* pairs, int64_t* slots, int64_t* offsets, int64_t count, "
    "int64_t experts",
    kinds=("",),
    returns="int64_t",
)


class SortedPairs(NamedTuple):
    """Token-expert pairs in the order of their experts, those of one expert by token."""

    pairs_Z: Tensor
    """Numbers of the pairs, token * K + place among its experts; dropped ones come last."""
    slot_MK: Tensor
    """Where each pair stands in that order."""
    offsets: Tensor
    """Where the pairs of each expert begin, and after the last one's those that are dropped."""
    kept: int
    """Pairs that are not dropped."""


def top_experts(
    scores_ME: Tensor, top_k: int, *, groups: int, top_groups: int, judges: int
) -> Tensor:
    """Return the K best experts of each token within its best groups, best first, [M, K].

    Args:
        scores_ME: float32.
        top_k: K.
        groups: into which the experts are cut in their order.
        top_groups: groups whose experts may be chosen.
        judges: best experts of a group whose scores are summed to judge it.
    """
    tokens, experts = scores_ME.shape
    if groups < 1 or experts % groups:
        raise ValueError(f"{experts} experts are not cut into {groups} equal groups.")
    size = experts // groups
    if not (0 <= judges <= size and 0 <= top_groups <= groups and 0 <= top_k <= top_groups * size):
        raise ValueError(
            f"there are no {top_k} experts in {top_groups} of {groups} groups, each of {size} "
            f"experts and judged by {judges} of them."
        )
    chosen_MK = scores_ME.new_empty(tokens, top_k, dtype=torch.int64)
    _TOP_EXPERTS.of()(
        address("scores of experts", scores_ME, torch.float32, (tokens, experts)),
        own_address(chosen_MK),
        *(tokens, experts, groups, top_groups, judges, top_k),
    )
    return chosen_MK


def sort_pairs(experts_MK: Tensor, num_experts: int) -> SortedPairs:
    """Sort pairs by their expert.

    Args:
        experts_MK: int64, from 0 to E; E marks a dropped pair.
        num_experts: E.
    """
    tokens, per_token = shape = experts_MK.shape
    count = tokens * per_token
    pairs_Z, slot_MK = experts_MK.new_empty(count), experts_MK.new_empty(shape)
    offsets = experts_MK.new_empty(num_experts + 1)
    kept = _SORT_PAIRS.of()(
        address("chosen experts", experts_MK, torch.int64, shape),
        own_address(pairs_Z),
        own_address(slot_MK),
        own_address(offsets),
        *(count, num_experts),
    )
    if kept < 0:
        found = f"{int(experts_MK.min())} to {int(experts_MK.max())}"
        raise ValueError(
            f"chosen experts are {found}; of {num_experts} they are 0 to {num_experts - 1}, and "
            f"{num_experts} for a pair that is dropped."
        )
    return SortedPairs(pairs_Z, slot_MK, offsets, kept)
