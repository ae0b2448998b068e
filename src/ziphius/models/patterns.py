"""What a query may see: the one place that decides it.

A pattern answers for pairs of tokens by position and document; the boolean mask it builds is the
oracle that every faster form must equal (`models/attention/backend.py` chooses among those).

Shapes: B sequences, T new tokens (queries), S all tokens (keys).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ziphius.models.config import ModelConfig
from ziphius.ops.native.program import Program


@dataclass(frozen=True)
class Tokens:
    """Where tokens stand: position inside their document, and which document of the row."""

    positions_BT: Tensor
    documents_BT: Tensor | None = None
    branches_BT: Tensor | None = None
    """Within a document: 0 for its beginning, which all its branches go on from; a branch sees that
    and itself. Only beside documents."""


class Pattern(ABC):
    """A rule that says which keys a query of the same document may see."""

    @abstractmethod
    def sees(self, query_BT1: Tensor, key_B1S: Tensor) -> Tensor:
        """Return bool [B, T, S] from positions of queries and keys; never true for the future."""


class Causal(Pattern):
    """Everything up to the query itself."""

    def sees(self, query_BT1: Tensor, key_B1S: Tensor) -> Tensor:
        """Compare positions."""
        return key_B1S <= query_BT1

    def emit(self, program: Program) -> None:
        """Have a native program show all earlier tokens."""
        program.window, program.sinks = 0, 0


class SlidingWindow(Pattern):
    """The last `window` tokens, and the first `sinks` of the document (arXiv 2309.17453)."""

    def __init__(self, window: int, sinks: int = 0) -> None:
        self.window = window
        self.sinks = sinks

    def sees(self, query_BT1: Tensor, key_B1S: Tensor) -> Tensor:
        """Compare distance with the window, and position with the sinks."""
        near = key_B1S > query_BT1 - self.window
        return (key_B1S <= query_BT1) & (near | (key_B1S < self.sinks))

    def emit(self, program: Program) -> None:
        """Have a native program show the window and the sinks."""
        program.window, program.sinks = self.window, self.sinks


def build_pattern(config: ModelConfig) -> Pattern:
    """Return the pattern that the config names."""
    return PATTERNS[config.pattern](config)


def _sliding_window(config: ModelConfig) -> Pattern:
    assert config.sliding_window is not None
    return SlidingWindow(config.sliding_window, config.attention_sinks)


PATTERNS = {
    "causal": lambda config: Causal(),
    "sliding_window": _sliding_window,
}


def visibility_mask(pattern: Pattern, queries: Tokens, keys: Tokens) -> Tensor:
    """Build the oracle: bool [B, T, S], true where a query may see a key.

    Documents never see each other, whatever the pattern, nor do the branches of one; both sides
    carry them or neither does.
    """
    assert (queries.documents_BT is None) == (keys.documents_BT is None)
    mask_BTS = pattern.sees(queries.positions_BT[:, :, None], keys.positions_BT[:, None, :])
    if queries.documents_BT is not None and keys.documents_BT is not None:
        mask_BTS = mask_BTS & (queries.documents_BT[:, :, None] == keys.documents_BT[:, None, :])
    if queries.branches_BT is not None and keys.branches_BT is not None:
        query_BT1, key_B1S = queries.branches_BT[:, :, None], keys.branches_BT[:, None, :]
        mask_BTS = mask_BTS & ((key_B1S == 0) | (key_B1S == query_BT1))
    return mask_BTS


def document_positions(documents_BT: Tensor) -> Tensor:
    """Count positions from 0 again at every change of document along a packed row."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.zeros_like(documents_BT)
    starts_BT[:, 1:] = torch.where(documents_BT[:, 1:] != documents_BT[:, :-1], index_T[1:], 0)
    return index_T - starts_BT.cummax(dim=1).values
