"""Summed cross entropies of a model over a batch; dividing by the global count is the trainer's.

Shapes: B sequences, T tokens, D hidden_size, W vocabulary, X positions that count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ziphius.models.model import Model, Output
from ziphius.ops.logprobs import cross_entropy_and_squares, summed_cross_entropy
from ziphius.ops.targets import rows_that_count, targets_ahead


@dataclass(frozen=True)
class TokenLoss:
    """A summed loss and the number of tokens it sums over."""

    loss_sum: Tensor
    tokens: Tensor
    squares_sum: Tensor | None = None
    """Sum of the squared log-sum-exp of the logits, where it was asked for."""

    @property
    def mean(self) -> Tensor:
        """Return the loss per token of this batch."""
        return self.loss_sum / self.tokens.clamp(min=1)


def next_token_loss(
    model: Model,
    output: Output,
    ids_BT: Tensor,
    *,
    documents_BT: Tensor | None = None,
    loss_mask_BT: Tensor | None = None,
    squares: bool = False,
) -> TokenLoss:
    """Return the cross entropy of the next token, within documents, where `loss_mask_BT` is true.

    `squares` asks for the sum that the z-loss is made of too.
    """
    targets_BT, counts_BT = targets_ahead(
        ids_BT, 1, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
    )
    return _cross_entropy(model, output.hidden_BTD, targets_BT, counts_BT, squares=squares)


def mtp_losses(
    model: Model,
    output: Output,
    ids_BT: Tensor,
    *,
    documents_BT: Tensor | None = None,
    loss_mask_BT: Tensor | None = None,
    detach_trunk: bool = False,
) -> list[TokenLoss]:
    """Return the cross entropy of each MTP depth (V3 report, equations 24-25).

    The loss of a run is the main one plus lambda / depths times the sum of these, each divided by
    its own count of tokens.

    Args:
        model: with MTP layers.
        output: of the forward pass over `ids_BT`, without a cache.
        ids_BT: the tokens of that pass.
        documents_BT: document of each token of a packed row.
        loss_mask_BT: bool, tokens that count in the loss.
        detach_trunk: train the MTP layers alone and leave the trunk's gradient untouched.
    """
    losses = []
    for depth, hidden_BTD in enumerate(model.predict_mtp(output, ids_BT, detach_trunk), 1):
        targets_BT, counts_BT = targets_ahead(
            ids_BT, 1 + depth, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
        )
        losses.append(_cross_entropy(model, hidden_BTD, targets_BT, counts_BT))
    return losses


def _cross_entropy(
    model: Model,
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    counts_BT: Tensor,
    *,
    squares: bool = False,
) -> TokenLoss:
    weight_WD = model.head.weight
    assert isinstance(weight_WD, Tensor)
    hidden_XD, targets_X = rows_that_count(counts_BT, hidden_BTD, targets_BT)
    if squares:
        loss_sum, squares_sum = cross_entropy_and_squares(hidden_XD, weight_WD, targets_X)
        return TokenLoss(loss_sum, counts_BT.sum(), squares_sum)
    return TokenLoss(summed_cross_entropy(hidden_XD, weight_WD, targets_X), counts_BT.sum())


def mtp_loss_mean(losses: list[TokenLoss]) -> Tensor:
    """Average the depths' losses per token: what lambda multiplies."""
    return torch.stack([loss.mean for loss in losses]).mean()
