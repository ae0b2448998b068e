"""How likely the model finds the tokens of a prompt, as `echo` and lm-eval want them.

Shapes: L rows of logits, W vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.engine.sampler import TopLogprobs
from ziphius.ops.logprobs import score_rows, top_logprobs


class TokenScore(NamedTuple):
    """One token of a prompt, given those before it."""

    logprob: float
    """Natural, at temperature 1."""
    top: TopLogprobs
    """The most likely tokens at its place; exactly `logprob` for this one if it is the first."""


def score_prompt(logits_LW: Tensor, token_ids: Sequence[int], top_k: int) -> list[TokenScore]:
    """Score the token behind each row.

    Args:
        logits_LW: float32.
        token_ids: L tokens.
        top_k: most likely tokens to return beside each.
    """
    ids_L = torch.tensor(token_ids, dtype=torch.int64, device=logits_LW.device)
    greedy_L = torch.zeros(len(token_ids), device=logits_LW.device)
    logprobs_L, normalizers_L = score_rows(logits_LW, ids_L, greedy_L)
    tops = [TopLogprobs((), ())] * len(token_ids)
    if top_k:
        scores = (ids_L, logprobs_L, normalizers_L)
        best = top_logprobs(logits_LW, greedy_L, scores, top_k)
        pairs = zip(*(x_LK.tolist() for x_LK in best), strict=True)
        tops = [TopLogprobs(tuple(ids), tuple(logprobs)) for ids, logprobs in pairs]
    return [TokenScore(*pair) for pair in zip(logprobs_L.tolist(), tops, strict=True)]
