"""Weights in the numbers that autocast multiplies in, for the length of a rollout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ziphius.models.model import Model
from ziphius.models.moe import RoutedExperts


@contextmanager
def rounded_weights(model: Model, dtype: torch.dtype) -> Iterator[None]:
    """Round the matrices that autocast would round at every product; restore them afterwards.

    Decoding multiplies few rows by all weights, so that rounding the experts anew in every step
    costs a third of it. The numbers are those of autocast alone: embedding, norms and gates, which
    it leaves in float32, stay there. Nothing may be trained inside the block.

    Args:
        model: with float32 weights.
        dtype: of autocast; with float32 nothing is done.
    """
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    if dtype != torch.float32:
        owners = [m for m in model.modules() if isinstance(m, nn.Linear | RoutedExperts)]
        weights = [weight for owner in owners for weight in owner.parameters(recurse=False)]
        # A head that is the embedding serves as both: it stays.
        tied = model.model.embed_tokens.weight
        kept = [(weight, weight.data) for weight in weights if weight is not tied]
    try:
        for weight, exact in kept:
            weight.data = exact.to(dtype)
        yield
    finally:
        for weight, exact in kept:
            weight.data = exact
