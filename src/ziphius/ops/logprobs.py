"""Log-probabilities of chosen tokens: the one place that trainer, engine and evaluation share.

Engine and trainer that each have their own arithmetic drift apart, and the importance ratio of
reinforcement learning (GRPO, arXiv 2402.03300, eq. 3) then starts away from 1. Everything that
needs log pi(token) calls this function, on the same logits and at the same temperature.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.precision import compute_dtype

LOGITS_BLOCK = 4 * 2**20
"""Logits held at once where they are computed block by block."""


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


def head_logprobs(
    hidden_XD: Tensor, weight_WD: Tensor, ids_X: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Score tokens as `token_logprobs` does on the logits of a linear head, never holding them all.

    The logits are computed block by block, and again in the backward pass.

    Args:
        hidden_XD: hidden states that predict the tokens.
        weight_WD: the head.
        ids_X: the tokens.
        temperature: divides the logits.
    """
    dtype = compute_dtype(hidden_XD)
    logprobs_X: Tensor = native.apply(
        _HeadLogprobs, hidden_XD, weight_WD, ids_X, temperature, dtype
    )
    return logprobs_X


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_XD: Tensor,
        weight_WD: Tensor,
        ids_X: Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        hidden, weight = hidden_XD.to(dtype), weight_WD.to(dtype)
        logprobs_X = hidden.new_empty(len(hidden), dtype=torch.float32)
        for rows in _blocks(len(hidden), len(weight)):
            logits = torch.mm(hidden[rows], weight.t())
            logprobs_X[rows] = token_logprobs(logits, ids_X[rows], temperature=temperature)
        ctx.save_for_backward(hidden, weight, ids_X, logprobs_X)
        ctx.temperature, ctx.input_dtypes = temperature, (hidden_XD.dtype, weight_WD.dtype)
        return logprobs_X

    @staticmethod
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, ids_X, logprobs_X = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for rows in _blocks(len(hidden), len(weight)):
            scaled = torch.mm(hidden[rows], weight.t()).float() / ctx.temperature
            ids_X1, share_X1 = ids_X[rows, None], grad_X[rows, None] / ctx.temperature
            # log p = logit - normalizer: the chosen logit gives the normalizer back.
            probs = (scaled - (scaled.gather(-1, ids_X1) - logprobs_X[rows, None])).exp_()
            grad_logits = probs.mul_(-share_X1).scatter_add_(-1, ids_X1, share_X1).to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            grad_weight += torch.mm(grad_logits.t(), hidden[rows])
        hidden_dtype, weight_dtype = ctx.input_dtypes
        return grad_hidden.to(hidden_dtype), grad_weight.to(weight_dtype), None, None, None


def _blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, LOGITS_BLOCK // vocabulary)
    return (slice(first, first + step) for first in range(0, rows, step))


def summed_cross_entropy(hidden_XD: Tensor, weight_WD: Tensor, targets_X: Tensor) -> Tensor:
    """Return the sum of -log p(target) of a linear head, never holding all logits.

    On a CPU the gradient is taken block by block in the forward pass, so the logits, W numbers per
    token, exist for one block only; elsewhere through `token_logprobs`.

    Args:
        hidden_XD: hidden states of the tokens that count.
        weight_WD: the head.
        targets_X: the tokens to predict.
    """
    if native.serves(hidden_XD, weight_WD) and hidden_XD.numel():
        loss: Tensor = native.apply(
            _SummedCrossEntropy, hidden_XD, weight_WD, targets_X, compute_dtype(hidden_XD)
        )
        return loss
    return -token_logprobs(F.linear(hidden_XD, weight_WD), targets_X).sum()


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_XD: Tensor, weight_WD: Tensor, targets_X: Tensor, dtype: torch.dtype
    ) -> Tensor:
        weight = weight_WD.to(dtype)
        hidden = hidden_XD.to(dtype)
        losses_X = torch.empty(len(hidden), dtype=torch.float32)
        normalizers_X = torch.empty_like(losses_X)
        grad_hidden_XD = torch.empty_like(hidden)
        grad_weight_WD = torch.zeros(weight.shape, dtype=torch.float32)
        for rows in _blocks(len(hidden), len(weight)):
            logits = torch.mm(hidden[rows], weight.t())
            native.call(
                "cross_entropy",
                native.SUFFIXES[dtype],
                logits,
                targets_X[rows].contiguous(),
                losses_X[rows],
                normalizers_X[rows],
                1.0,
                len(logits),
                len(weight),
            )
            torch.mm(logits, weight, out=grad_hidden_XD[rows])
            grad_weight_WD += torch.mm(logits.t(), hidden[rows])
        ctx.save_for_backward(grad_hidden_XD, grad_weight_WD)
        ctx.input_dtype = hidden_XD.dtype
        return losses_X.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_XD, grad_weight_WD = ctx.saved_tensors
        return (grad_hidden_XD * grad).to(ctx.input_dtype), grad_weight_WD * grad, None, None
