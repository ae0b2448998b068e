"""What a proposer of drafts is to the engine.

Shapes: L rows that are drawn from, W vocabulary, M tokens of a step, D hidden_size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Ints

Draw = Callable[[Tensor, Sequence[SequenceState], int], list[int]]
"""Draws a token for each row of draft logits [L, W], to stand so many places behind the tokens of
its sequence (0: right behind them), with the very random number that the target draws with there.
Places are drawn in order: what was drawn for place 0 is part of the sequence at place 1."""


class Computed(NamedTuple):
    """What a step of the target has computed of one sequence."""

    sequence: SequenceState
    start: int
    """Position of its first token in the step."""
    first_row: int
    """Where that stands in the step."""
    kept: int
    """Tokens of it that stay; those behind are rejected drafts."""


class Proposer(Protocol):
    """Guesses what sequences go on with. A wrong guess costs time, and changes nothing else.

    Order of use in every step: `propose`; then the target's step; then `overwrite`, `copy_blocks`
    where a prompt was completed for several, and `observe`.
    """

    needs_hidden: bool
    """`observe` wants the target's hidden states."""

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        """Return at most so many drafts for each sequence.

        The blocks of a sequence have room for them, and neither blocks nor hidden states of the
        last step have changed hands since `observe`.
        """
        ...

    def overwrite(self, slots_M: Ints) -> None:
        """Hear that the target has put its rows into these slots: other tokens lie there now."""
        ...

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        """Hear what a step has computed.

        Args:
            computed: every sequence of the step that goes on.
            hidden_MD: behind the target's final norm; valid until its next step. None if the
                runner returns none, or the step had to be computed again, sequence by sequence.
        """
        ...

    def forget(self, sequence: SequenceState) -> None:
        """Hear that a sequence gives its seat and its blocks up."""
        ...

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Hear that the rows of these blocks have been copied."""
        ...
