"""The arithmetic of GRPO: advantages within a group, the clipped objective, the k3 penalty.

Sources: DeepSeekMath (arXiv 2402.03300), equations 3-4; DeepSeek-R1 (arXiv 2501.12948), section
2.2.1. The mean over all tokens and the wider upper clip are DAPO's (arXiv 2503.14476); advantages
without the division are Dr. GRPO's (arXiv 2503.20783) and DeepSeek-V3.2's (arXiv 2512.02556), whose
the ratio in the penalty is, too. `tests/numerics/test_trl.py` compares all of it with TRL.

Shapes: G groups, A completions of a group, X tokens that were sampled.
"""

from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["std", "mean"]


def group_advantages(rewards_GA: Tensor, kind: AdvantageKind) -> tuple[Tensor, Tensor]:
    """Compare every answer with the others to its problem.

    Args:
        rewards_GA: rewards.
        kind: `std`: (r - mean) / std, with the standard deviation of the group itself (divided by
            A, not A - 1: the papers do not say, and so +-1 is the advantage of even chances);
            `mean`: r - mean.

    Returns:
        Advantages [G, A], and bool [G]: the groups whose rewards differ. Those of the others are 0:
        they say nothing, and are to be left out of every mean.
    """
    differs_G = rewards_GA.amax(dim=1) > rewards_GA.amin(dim=1)
    # What is left of (r - mean) in a group of equal rewards is rounding.
    centred_GA = (rewards_GA - rewards_GA.mean(dim=1, keepdim=True)) * differs_G[:, None]
    if kind == "mean":
        return centred_GA, differs_G
    spread_G1 = rewards_GA.std(dim=1, correction=0, keepdim=True)
    return torch.where(differs_G[:, None], centred_GA / spread_G1, 0.0), differs_G


def clipped_losses(
    logprobs_X: Tensor,
    old_logprobs_X: Tensor,
    advantages_X: Tensor,
    epsilon: float,
    epsilon_high: float,
) -> tuple[Tensor, Tensor]:
    """Return -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) of each token, with its
    gradient.

    Args:
        logprobs_X: of the model that is trained.
        old_logprobs_X: of the model before the update, which sampled; without a gradient.
        advantages_X: of the answer that each token belongs to.
        epsilon: how far the ratio may fall before a token with A < 0 stops counting.
        epsilon_high: how far it may rise before a token with A > 0 does.

    Returns:
        Losses, and bool: the tokens that the clip took out of the gradient.
    """
    ratio_X = (logprobs_X - old_logprobs_X).exp()
    free_X = ratio_X * advantages_X
    clipped_X = ratio_X.clamp(1 - epsilon, 1 + epsilon_high) * advantages_X
    return -torch.minimum(free_X, clipped_X), clipped_X < free_X


def k3_penalties(logprobs_X: Tensor, old_logprobs_X: Tensor, ref_logprobs_X: Tensor) -> Tensor:
    """Return ratio (q - ln q - 1) of each token, q = reference / model, ratio = model / sampler.

    Never below 0. On tokens of the sampler value and gradient are unbiased for KL(model ||
    reference) (http://joschu.net/blog/kl-approx.html; DeepSeek-V3.2, section 3.1). DeepSeekMath has
    no ratio: the value is the same where the model itself sampled, but not the gradient, which is
    that of KL(reference || model).

    Args:
        logprobs_X: of the model that is trained.
        old_logprobs_X: of the model before the update, which sampled; without a gradient.
        ref_logprobs_X: of the reference, without a gradient.
    """
    log_ratio_X = ref_logprobs_X - logprobs_X
    # expm1 keeps the small differences of a model that hardly moved.
    return (logprobs_X - old_logprobs_X).exp() * (torch.expm1(log_ratio_X) - log_ratio_X)
