"""Drafts out of the text itself: what followed its last tokens when they stood there before.

Prompt lookup decoding (Saxena, 2023), as in transformers and vLLM: good where an answer quotes its
prompt, edits code, or goes round in circles. The latest place counts, and a text that has begun to
repeat itself is continued round and round.
"""

from collections.abc import Sequence

from torch import Tensor

from ziphius.engine.drafts.proposer import Computed, Draw
from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Ints

MOST_TOKENS = 0x110000
"""Largest vocabulary: a token is searched for as a character, which Python does at C's speed."""


def look_up(text: str, count: int, longest: int, shortest: int) -> list[int]:
    """Continue a text whose characters are tokens as it went on at the latest like place.

    Args:
        text: ids as code points.
        count: tokens wanted.
        longest: how many last ones are looked for; fewer, down to `shortest`, if not found.
        shortest: at least 1.

    Returns:
        `count` tokens, or none.
    """
    for size in range(min(longest, len(text) - 1), shortest - 1, -1):
        place = text.rfind(text[-size:], 0, len(text) - 1)
        if place >= 0:
            tail = text[place + size :]
            rounds = -(-count // len(tail))
            return [ord(character) for character in (tail * rounds)[:count]]
    return []


class NgramProposer:
    """Looks the last tokens of a sequence up in all of it, prompt and completion.

    Args:
        longest: tokens that are looked for.
        shortest: tokens that are looked for if more are not found.
    """

    needs_hidden = False

    def __init__(self, longest: int, shortest: int) -> None:
        self._longest = longest
        self._shortest = shortest
        self._texts: dict[SequenceState, str] = {}

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        """Return as many drafts as asked for, or none where the text does not repeat itself."""
        return [
            look_up(self._text(sequence), length, self._longest, self._shortest) if length else []
            for sequence, length in zip(sequences, lengths, strict=True)
        ]

    def _text(self, sequence: SequenceState) -> str:
        known = self._texts.get(sequence, "")
        text = known + "".join(map(chr, sequence.tokens[len(known) :]))
        self._texts[sequence] = text
        return text

    def overwrite(self, slots_M: Ints) -> None:
        """Do nothing: tokens are all it reads."""

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        """Do nothing."""

    def forget(self, sequence: SequenceState) -> None:
        """Drop the text."""
        self._texts.pop(sequence, None)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Do nothing."""
