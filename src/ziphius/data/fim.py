"""Fill in the middle: DeepSeek-V3 report (arXiv 2412.19437), section 4.1; DeepSeek-Coder
(arXiv 2401.14196), section 3.1.2; the two orders are those of arXiv 2207.14255.

A document is cut at two random characters before it is packed, and written as

    PSM   begin prefix hole suffix end middle
    SPM   begin hole suffix end prefix middle

with the family's own tokens. SPM is PSM with an empty prefix whose middle is `prefix middle`, so a
model that knows one has little to learn for the other. Whether a document is cut, where, and in
which order is a hash of (seed, key).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ziphius.data.document import Document, fraction
from ziphius.text.special import FIM_BEGIN, FIM_END, FIM_HOLE
from ziphius.text.tokenizer import Tokenizer

Order = Literal["psm", "spm"]


@dataclass(frozen=True, slots=True)
class Fim:
    """How much code is written with its middle at the end."""

    rate: float = 0.0
    """Share of the code documents."""
    spm_share: float = 0.0
    """Share of those in the order SPM; the family itself used PSM alone."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A document in three pieces."""

    prefix: str
    middle: str
    suffix: str
    order: Order


def cut(document: Document, fim: Fim) -> Cut | None:
    """Cut a document, or say by None that it stays in its natural order."""

    def draw(what: str) -> float:
        return fraction(what, fim.seed, document.key)

    if not document.is_code or draw("fim") >= fim.rate:
        return None
    length = len(document.text) + 1
    first, second = sorted((int(draw("first cut") * length), int(draw("second cut") * length)))
    text = document.text
    order: Order = "spm" if draw("order") < fim.spm_share else "psm"
    return Cut(text[:first], text[first:second], text[second:], order)


def arrange(pieces: Cut, encode: Callable[[str], list[int]], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a cut document, begin of text and end of text not included."""
    begin, hole, end = map(tokenizer.token_id, (FIM_BEGIN, FIM_HOLE, FIM_END))
    prefix, middle, suffix = map(encode, (pieces.prefix, pieces.middle, pieces.suffix))
    if pieces.order == "psm":
        return [begin, *prefix, hole, *suffix, end, *middle]
    return [begin, hole, *suffix, end, *prefix, *middle]
