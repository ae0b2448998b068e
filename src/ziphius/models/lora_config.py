"""`LoraConfig`: which projections get adapters; apart from `lora.py`, to be read without torch."""

from typing import Annotated

from pydantic import Field

from ziphius.core.config import Config


class LoraConfig(Config):
    """Which projections get an adapter, and how large it is."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters; 0 trains all weights instead."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapters' product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of projections, such as q_b_proj or shared_experts.up_proj; by default all of attention
    and of the dense and shared feed-forward layers."""
