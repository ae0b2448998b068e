"""The think block of an answer: where it ends, and the budget that ends it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Thinking:
    """How a model thinks: the tokens around its think block, and whether the prompt opens one."""

    end_ids: tuple[int, ...]
    """Tokens of `</think>`, in most vocabularies one."""
    start_ids: tuple[int, ...] = ()
    """Tokens of `<think>`, where the model may open a block itself; none: it never does."""
    is_open: bool = True
    """The prompt ends inside a think block."""


class _State(NamedTuple):
    inside: bool
    spent: int
    """Tokens inside."""
    matched: int
    """Tokens of the tag that ends (outside: opens) the block which the sequence ends with."""


class ThinkBlock:
    """Follow a sequence into its think block and out of it, token by token and back."""

    def __init__(self, thinking: Thinking) -> None:
        self._tags = {True: thinking.end_ids, False: thinking.start_ids}
        self._history: list[int] = []
        self._states = [_State(thinking.is_open, 0, 0)]

    @property
    def state(self) -> _State:
        """Where the sequence stands."""
        return self._states[-1]

    def accept(self, token_id: int) -> None:
        """Go on by one token."""
        state = self.state
        self._history.append(token_id)
        tag = self._tags[state.inside]
        matched = _overlap(tag, self._history)
        if tag and matched == len(tag):
            self._states.append(_State(not state.inside, 0, 0))
        else:
            self._states.append(_State(state.inside, state.spent + state.inside, matched))

    def rollback(self, count: int) -> None:
        """Go back."""
        if count:
            del self._history[-count:], self._states[-count:]


def _overlap(tag: tuple[int, ...], history: Sequence[int]) -> int:
    """Return the length of the longest beginning of `tag` that `history` ends with."""
    sizes = range(min(len(tag), len(history)), 0, -1)
    return next((size for size in sizes if tuple(history[-size:]) == tag[:size]), 0)


class ThinkingBudget:
    """Write the end of the think block once its tokens are spent.

    Tokens of the end count as thinking until it is complete.

    Args:
        budget: tokens that a block may have before its end.
        thinking: its tags.
    """

    def __init__(self, budget: int, thinking: Thinking) -> None:
        self._budget, self._end_ids = budget, thinking.end_ids
        self._block = ThinkBlock(thinking)

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Leave the next token of the end alone, once it is time."""
        inside, spent, matched = self._block.state
        if inside and spent - matched >= self._budget:
            forced = self._end_ids[matched]
            logits_W.fill_(-torch.inf)
            logits_W[forced] = 0.0

    def accept(self, token_id: int) -> str | None:
        """Count a token."""
        self._block.accept(token_id)
        return None

    def rollback(self, count: int) -> None:
        """Take the last tokens back."""
        self._block.rollback(count)
