"""What may be chosen about conversations; read without torch, as options are."""

from typing import Literal

EarlierTurns = Literal["expand", "mask"]
"""What happens to turns whose reasoning is dropped from what comes later: they get samples of their
own, or are not learned."""
ThinkBlocks = Literal["parse", "text"]
"""What a think block in the content of an answer is: its reasoning, or letters like any other."""
