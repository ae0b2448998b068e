"""Log-probabilities of chosen tokens: the one place that trainer, engine and evaluation share.

Engine and trainer that each have their own arithmetic drift apart, and the importance ratio of
reinforcement learning (GRPO, arXiv 2402.03300, eq. 3) then starts away from 1. Everything that
needs log pi(token) calls this function, on the same logits and at the same temperature.
"""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, ids: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Score the chosen tokens in fp32, without building the full log-softmax.

    Args:
        logits: [..., W], any float type; computed in fp32.
        ids: [...], the chosen token of each row.
        temperature: above 0; divides the logits. A tensor is one value per row, shaped as `ids`.

    Returns:
        fp32 log-probabilities shaped as `ids`, differentiable with respect to `logits`.
    """
    scaled = logits.float()
    if isinstance(temperature, Tensor):
        scaled = scaled / temperature.unsqueeze(-1)
    elif temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a log-probability needs one above 0")
    elif temperature != 1.0:
        scaled = scaled / temperature
    chosen = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)
