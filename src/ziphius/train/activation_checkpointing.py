"""Activation checkpointing (arXiv 1604.06174): keep each layer's input, compute the rest again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from ziphius.models.block import Block
from ziphius.models.model import Model


@contextmanager
def activation_checkpointing(model: Model, is_on: bool = True) -> Iterator[None]:
    """Let the decoder layers of a model forget their activations for the length of a block.

    A routing that a layer leaves behind is written again when it is recomputed, with equal values.
    Names in the state dict do not change.
    """
    blocks = [module for module in model.modules() if is_on and isinstance(module, Block)]
    for block in blocks:
        again = partial(checkpoint, block.forward, use_reentrant=False)
        # An attribute of the instance comes before the method of the class.
        object.__setattr__(block, "forward", again)
    try:
        yield
    finally:
        for block in blocks:
            object.__delattr__(block, "forward")
