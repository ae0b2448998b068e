"""`RolloutConfig`: how answers are sampled; apart from `sample.py`, so that it needs no torch."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from ziphius.core.config import RenamedConfig
from ziphius.core.errors import ConfigError
from ziphius.ops.sampling_config import SamplingConfig


class RolloutConfig(RenamedConfig):
    """How completions are sampled."""

    renamed: ClassVar[Mapping[str, str]] = {"group_size": "num_generations"}
    num_generations: Annotated[int, Field(ge=1)] = 16
    """Completions of each prompt: the group of GRPO."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion in tokens; one that is cut off here counts as no answer."""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn; the seed comes from the run."""
    sequences_at_once: Annotated[int, Field(ge=1, le=4096)] = 512
    """Completions that are decoded at the same time; one begins when another ends. It limits memory
    alone."""
    thinking: bool | None = None
    """Let the model reason before it answers; by default what the chat format does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sampling.seed:
            raise ConfigError("sampling.seed has no effect: the seed of the run decides the draws.")
        if self.sampling.temperature == 0 and self.num_generations > 1:
            raise ConfigError(
                "temperature is 0 (greedy), so all completions of a group would be the same: set "
                "num_generations to 1, or a temperature."
            )
        return self
