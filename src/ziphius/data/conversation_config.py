"""What may be chosen about conversations; read without torch, as options are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EarlierTurns = Literal["expand", "mask"]
"""What happens to turns whose reasoning is dropped from what comes later: they get samples of their
own, or are not learned."""
ThinkBlocks = Literal["parse", "text"]
"""What a think block in the content of an answer is: its reasoning, or letters like any other."""


@dataclass(frozen=True)
class ConversationSources:
    """Which conversations are learned from and measured on."""

    data: tuple[Path, ...]
    validation: Path | None = None
    """Measured on, instead of a share of the data."""
    hold_out: float = 0.0
    """Share of the data that is measured on and never learned."""
    most: int | None = None
    """Most conversations that are learned from."""
    strict: bool = False
    """The first bad row is an error."""
    max_bad_share: float = 0.0
    """Largest share of bad rows, of all that were read."""
