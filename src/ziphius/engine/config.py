"""How much an engine takes on at once."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.engine.speculation_config import SpeculationConfig


class EngineConfig(Config):
    """Limits of an engine, and the size of its cache."""

    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 64
    """Sequences that run at the same time; others wait."""
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens of one step, decoded ones and pieces of prompts together: more of them prefill faster,
    fewer let running answers go on sooner."""
    max_prefill_chunk: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one prompt in one step; by default only the step as a whole is limited."""
    block_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens of a block of the cache; prefixes are shared in whole blocks."""
    num_blocks: Annotated[int, Field(ge=1)] | None = None
    """Blocks of the cache; by default enough for `max_num_seqs` sequences, or for the context once,
    within a quarter of the free memory."""
    prefix_caching: bool = True
    """Keep what was computed of a text, for texts that begin alike."""
    speculation: SpeculationConfig | None = None
    """How tokens are guessed ahead, so that a step can give a sequence several; by default not."""
    max_queue: Annotated[int, Field(ge=1)] = 4096
    """Requests that may wait; one more is refused."""

    @model_validator(mode="after")
    def _every_sequence_gets_a_token(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, but max_num_seqs is "
                f"{self.max_num_seqs}: each running sequence needs a token in every step"
            )
        return self
