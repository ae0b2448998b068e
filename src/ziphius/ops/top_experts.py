"""The K best experts of every token, within the best groups of experts.

Sources: DeepSeek-V2 report (arXiv 2405.04434), section 2.2.2; DeepSeek-V3 report (arXiv
2412.19437), section 2.1.2.

Shapes: M tokens, E experts, G groups of X experts, K experts per token.
"""

import torch
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.native import routing


def top_experts(
    scores_ME: Tensor, top_k: int, *, groups: int = 1, top_groups: int = 1, judges: int = 1
) -> Tensor:
    """Choose K different experts for each token, best first, [M, K].

    Args:
        scores_ME: float32, without a gradient.
        top_k: K.
        groups: G, into which the experts are cut in their order.
        top_groups: groups whose experts may be chosen.
        judges: best experts of a group whose scores are summed to judge it.
    """
    if native.serves(scores_ME) and scores_ME.dtype == torch.float32:
        return routing.top_experts(
            scores_ME.contiguous(), top_k, groups=groups, top_groups=top_groups, judges=judges
        )
    if top_groups < groups:
        grouped_MGX = scores_ME.unflatten(1, (groups, -1))
        group_scores_MG = grouped_MGX.topk(judges, dim=-1).values.sum(dim=-1)
        best_MG = group_scores_MG.topk(top_groups, dim=-1).indices
        outside_MG = torch.ones_like(group_scores_MG, dtype=torch.bool).scatter(1, best_MG, False)
        # -inf, not 0: with V3's bias a score may be negative, and a masked 0 would then win.
        scores_ME = grouped_MGX.masked_fill(outside_MG.unsqueeze(-1), -torch.inf).flatten(1)
    return scores_ME.topk(top_k, dim=-1).indices
