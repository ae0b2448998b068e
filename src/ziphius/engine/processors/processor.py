"""`LogitsProcessor`: the seam between the sampler and what has a say in a sequence's tokens."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ziphius.core.errors import ZiphiusError


class ProcessorError(ZiphiusError):
    """A request asks for what cannot be: no token is left that it may have."""


class LogitsProcessor(Protocol):
    """Has a say in the tokens of one sequence, and keeps its own state of it.

    The sampler calls it before each draw, and tells it each token that the sequence then has, in
    order. Drafts are told too, before it is known whether they stay, and taken back in reverse.
    """

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Change the logits of the next token in place.

        Args:
            logits_W: float32, a copy that is this row's alone; -inf for what cannot come.
            token_ids: all tokens that the sequence has behind its prompt.

        Raises:
            ProcessorError: no token can come. It ends this request alone.
        """
        ...

    def accept(self, token_id: int) -> str | None:
        """Note the next token of the sequence; return why it ends with it, None if it does not."""
        ...

    def rollback(self, count: int) -> None:
        """Forget the last tokens."""
        ...


class Stateless:
    """The half of a `LogitsProcessor` that remembers nothing: the tokens it is shown are enough."""

    def accept(self, token_id: int) -> str | None:
        """Go on."""
        return None

    def rollback(self, count: int) -> None:
        """Forget nothing."""
