"""How much an engine takes on at once."""

from pathlib import Path
from typing import Annotated, Literal, Self

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
    cache_dtype: Literal["auto", "bfloat16", "int8", "fp8"] = "auto"
    """Numbers that the cache keeps; auto are those of the weights. bfloat16 under float32 weights
    halves it, and rounds what is remembered of a text to 8 bits. int8 halves that again, with a
    scale for each head or 128 numbers; so does fp8 (e4m3), which rounds more."""
    prefix_caching: bool = True
    """Keep what was computed of a text, for texts that begin alike."""
    max_adapter_bytes: Annotated[int, Field(ge=1)] = 2**30
    """Memory for adapters, in bytes; of more of them, those used last are kept."""
    disk_cache: Path | None = None
    """Folder for what memory has no room for of the prefix cache; it is found there again, also
    after a restart. Whoever can read it can read prompts out of it."""
    disk_cache_bytes: Annotated[int, Field(ge=1)] = 10 * 2**30
    """Size of that folder at most."""
    speculation: SpeculationConfig | None = None
    """How tokens are guessed ahead, so that a step can give a sequence several; by default not."""
    max_queue: Annotated[int, Field(ge=1)] = 4096
    """Requests that may wait; one more is refused."""

    @model_validator(mode="after")
    def _disk_has_an_effect(self) -> Self:
        if self.disk_cache is not None and not self.prefix_caching:
            raise ConfigError("disk_cache has no effect without prefix_caching")
        if self.disk_cache is None and "disk_cache_bytes" in self.model_fields_set:
            raise ConfigError("disk_cache_bytes has no effect without disk_cache")
        return self

    @model_validator(mode="after")
    def _every_sequence_gets_a_token(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, but max_num_seqs is "
                f"{self.max_num_seqs}: each running sequence needs a token in every step"
            )
        return self
