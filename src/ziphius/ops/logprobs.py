"""Log-probabilities of chosen tokens: the one place that trainer, engine and evaluation share.

Engine and trainer that each have their own arithmetic drift apart, and the importance ratio of
reinforcement learning (GRPO, arXiv 2402.03300, eq. 3) then starts away from 1. Everything that
needs log pi(token) calls this function, on the same logits and at the same temperature.

Shapes: L rows of logits, W vocabulary, K most likely tokens, X rows of any leading shape.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native import pointwise, sampling
from ziphius.ops.precision import compute_dtype

LOGITS_BLOCK, ACCELERATOR_LOGITS_BLOCK = 4 * 2**20, 256 * 2**20
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


def score_rows(
    logits_LW: Tensor, ids_L: Tensor, temperatures_L: Tensor, *, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Score one token of each row, the same to the last bit whatever other rows there are.

    Args:
        logits_LW: float32.
        ids_L: int64.
        temperatures_L: float32; divide the logits, but for 0.
        limit: tokens that are ever drawn (`ops/sampling.py`), the first ones. It only says where
            sums are cut, so it has to be the same for the same bits.

    Returns:
        float32 log-probabilities, and log sum exp of the divided logits.
    """
    width = logits_LW.size(-1)
    if native.serves(logits_LW) and logits_LW.dtype is torch.float32:
        return sampling.score(logits_LW, ids_L, temperatures_L, limit=limit or width)
    scaled_LW = divided(logits_LW, temperatures_L)
    # Threads of a CPU share the sum of a row that is alone, and take other rows whole.
    alone = scaled_LW.is_cpu and len(scaled_LW) == 1
    rows_LW = torch.cat((scaled_LW, scaled_LW)) if alone else scaled_LW
    normalizers_L = rows_LW.logsumexp(-1)[: len(scaled_LW)]
    return scaled_LW.gather(-1, ids_L.unsqueeze(-1)).squeeze(-1) - normalizers_L, normalizers_L


def top_logprobs(
    logits_LW: Tensor, temperatures_L: Tensor, scores: tuple[Tensor, Tensor, Tensor], top_k: int
) -> tuple[Tensor, Tensor]:
    """Return ids and log-probabilities of the most likely tokens of each row, [L, K], best first.

    The largest equals the chosen token's exactly where that one has the largest logit: lm-eval
    reads from it whether a text is what greedy decoding gives. Where rounding would make them
    equal without that, the larger is moved up by its last bit.

    Args:
        logits_LW: float32.
        temperatures_L: as for `score_rows`.
        scores: chosen ids, and what `score_rows` returned for them.
        top_k: K.
    """
    ids_L, logprobs_L, normalizers_L = (x.unsqueeze(-1) for x in scores)
    best = logits_LW.topk(top_k, dim=-1)
    # Dividing K numbers and not W: division keeps the order.
    best_LK = divided(best.values, temperatures_L) - normalizers_L
    is_above_LK = (best.values > logits_LW.gather(-1, ids_L)) & (best_LK <= logprobs_L)
    above_L1 = logprobs_L.nextafter(torch.full_like(logprobs_L, torch.inf))
    return best.indices, torch.where(is_above_LK, above_L1, best_LK)


def divided(logits_LW: Tensor, temperatures_L: Tensor) -> Tensor:
    """Divide each row by its temperature, but for 0, which is greedy."""
    return logits_LW / temperatures_L.masked_fill(temperatures_L == 0, 1.0).unsqueeze(-1)


def head_logprobs(
    hidden_XD: Tensor,
    weight_WD: Tensor,
    ids_X: Tensor,
    *,
    temperature: float = 1.0,
    known_X: Tensor | None = None,
) -> Tensor:
    """Score tokens as `token_logprobs` does on the logits of a linear head, never holding them all.

    The logits are computed block by block, and again in the backward pass.

    Args:
        hidden_XD: hidden states that predict the tokens.
        weight_WD: the head.
        ids_X: the tokens.
        temperature: divides the logits.
        known_X: float32: what another kernel found for the same; it is returned, and only the
            gradient is computed here.
    """
    dtype = compute_dtype(hidden_XD)
    logprobs_X: Tensor = native.apply(
        _HeadLogprobs, hidden_XD, weight_WD, ids_X, temperature, dtype, known_X
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
        known_X: Tensor | None,
    ) -> Tensor:
        hidden, weight = hidden_XD.to(dtype), weight_WD.to(dtype)
        if known_X is not None:
            logprobs_X = known_X.clone()
        else:
            logprobs_X = hidden.new_empty(len(hidden), dtype=torch.float32)
            for rows in _blocks(hidden, len(weight)):
                logits = torch.mm(hidden[rows], weight.t())
                logprobs_X[rows] = token_logprobs(logits, ids_X[rows], temperature=temperature)
        ctx.save_for_backward(hidden, weight, ids_X, logprobs_X)
        ctx.temperature, ctx.input_dtypes = temperature, (hidden_XD.dtype, weight_WD.dtype)
        return logprobs_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids_X, logprobs_X = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        if ctx.needs_input_grad[1]:  # not of a frozen head
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for rows in _blocks(hidden, len(weight)):
            scaled = torch.mm(hidden[rows], weight.t()).float() / ctx.temperature
            ids_X1, share_X1 = ids_X[rows, None], grad_X[rows, None] / ctx.temperature
            # log p = logit - normalizer: the chosen logit gives the normalizer back.
            probs = (scaled - (scaled.gather(-1, ids_X1) - logprobs_X[rows, None])).exp_()
            grad_logits = probs.mul_(-share_X1).scatter_add_(-1, ids_X1, share_X1).to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), hidden[rows], first=False)
        hidden_dtype, weight_dtype = ctx.input_dtypes
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_dtype)
        return grad_hidden.to(hidden_dtype), grad_weight, None, None, None, None


def _blocks(hidden: Tensor, vocabulary: int) -> Iterator[slice]:
    """Cut rows into blocks: on a CPU such as its cache holds, elsewhere such as keep it busy."""
    held = LOGITS_BLOCK if hidden.device.type == "cpu" else ACCELERATOR_LOGITS_BLOCK
    step = max(1, held // vocabulary)
    return (slice(first, first + step) for first in range(0, len(hidden), step))


def summed_cross_entropy(hidden_XD: Tensor, weight_WD: Tensor, targets_X: Tensor) -> Tensor:
    """Return the sum of -log p(target) of a linear head, never holding all logits.

    The gradient is taken block by block in the forward pass, so the logits, W numbers per token,
    exist for one block only.

    Args:
        hidden_XD: hidden states of the tokens that count.
        weight_WD: the head.
        targets_X: the tokens to predict.
    """
    return _head_losses(hidden_XD, weight_WD, targets_X, squares=False)[0]


def cross_entropy_and_squares(
    hidden_XD: Tensor, weight_WD: Tensor, targets_X: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `summed_cross_entropy` does, and the sum of the squared log-sum-exp beside it.

    The second is the z-loss of PaLM (arXiv 2204.02311, section 5). Both come from one pass over
    the logits; the second costs one product more, for its gradient at the head.
    """
    return _head_losses(hidden_XD, weight_WD, targets_X, squares=True)


def _head_losses(
    hidden_XD: Tensor, weight_WD: Tensor, targets_X: Tensor, *, squares: bool
) -> tuple[Tensor, Tensor]:
    if hidden_XD.numel():
        losses: tuple[Tensor, Tensor] = native.apply(
            _HeadLosses, hidden_XD, weight_WD, targets_X, compute_dtype(hidden_XD), squares
        )
        return losses
    nothing = F.linear(hidden_XD, weight_WD).sum()
    return nothing, nothing.square()  # both with a gradient, of zeros


def _cross_entropy_(logits_XW: Tensor, targets_X: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses and normalizers of a block, and put p - target in the place of its logits."""
    if native.serves(logits_XW):
        return pointwise.cross_entropy(logits_XW, targets_X.contiguous())
    targets_X1, scaled_XW = targets_X.unsqueeze(1), logits_XW.float()
    chosen_X1 = scaled_XW.gather(1, targets_X1)
    logprobs_XW = scaled_XW.log_softmax(dim=1)
    losses_X1 = -logprobs_XW.gather(1, targets_X1)
    logits_XW.copy_(logprobs_XW.exp_().scatter_add_(1, targets_X1, -torch.ones_like(chosen_X1)))
    return losses_X1.squeeze(1), (losses_X1 + chosen_X1).squeeze(1)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Add a product to a float32 sum, in place; the first one begins it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(torch.mm(a, b))
    else:
        total += torch.mm(a, b)


class _HeadLosses(torch.autograd.Function):
    """Cross entropy, and with `squares` the squared log-sum-exp z, with their gradients.

    The gradient of z^2 is 2 z p, so at the hidden states it follows from that of the cross entropy:
    p W = (p - target) W + W[target].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_XD: Tensor,
        weight_WD: Tensor,
        targets_X: Tensor,
        dtype: torch.dtype,
        squares: bool,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_WD.to(dtype)
        hidden = hidden_XD.to(dtype)
        losses_X = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalizers_X = torch.empty_like(losses_X)
        grad_hidden_XD = torch.empty_like(hidden)
        # A frozen head, below adapters, takes no gradient: it would be larger than all of theirs.
        count = 1 + squares if any(ctx.needs_input_grad[1:2]) else 0
        grads_WD = [torch.empty_like(weight, dtype=torch.float32) for _ in range(count)]
        for rows in _blocks(hidden, len(weight)):
            first = rows.start == 0
            logits = torch.mm(hidden[rows], weight.t())
            losses_X[rows], normalizers_X[rows] = _cross_entropy_(logits, targets_X[rows])
            torch.mm(logits, weight, out=grad_hidden_XD[rows])
            if not grads_WD:
                continue
            _add_product(grads_WD[0], logits.t(), hidden[rows], first=first)
            if squares:
                scaled = hidden[rows] * (2.0 * normalizers_X[rows, None]).to(dtype)
                _add_product(grads_WD[1], logits.t(), scaled, first=first)
                grads_WD[1].index_add_(0, targets_X[rows], scaled.float())
        of_hidden = [grad_hidden_XD]
        if squares:
            twice_X1 = (2.0 * normalizers_X[:, None]).to(dtype)
            of_hidden.append(twice_X1 * (grad_hidden_XD + weight.index_select(0, targets_X)))
        ctx.save_for_backward(*of_hidden, *grads_WD)
        ctx.input_dtype, ctx.squares = hidden_XD.dtype, squares
        return losses_X.sum(), normalizers_X.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_squares: Tensor) -> tuple[Tensor | None, ...]:
        own = (grad, grad_squares) if ctx.squares else (grad,)
        of_hidden, of_weight = ctx.saved_tensors[: len(own)], ctx.saved_tensors[len(own) :]
        grad_hidden_XD = _weighted_sum(of_hidden, own)
        grad_weight_WD = _weighted_sum(of_weight, own) if of_weight else None
        return grad_hidden_XD.to(ctx.input_dtype), grad_weight_WD, None, None, None


def _weighted_sum(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] * factors[0]
    for tensor, factor in zip(tensors[1:], factors[1:], strict=True):
        total = total + tensor * factor
    return total
