"""`RolloutConfig`: how answers are sampled; apart from `sample.py`, so that it needs no torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.ops.sampling_config import SamplingConfig


class RolloutConfig(Config):
    """How answers are sampled."""

    group_size: Annotated[int, Field(ge=1)] = 16
    """Answers to each problem."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer in tokens; one that is cut here counts as no answer."""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn; the seed comes from the run."""
    sequences_at_once: Annotated[int, Field(ge=1)] = 512
    """Answers that are decoded together, whole groups at a time; a limit of memory alone."""
    thinking: bool | None = None
    """Let the model reason before it answers; by default what the chat format does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sampling.seed:
            raise ConfigError("sampling.seed has no effect: the seed of the run decides the draws.")
        if self.sampling.temperature == 0 and self.group_size > 1:
            raise ConfigError(
                "temperature is 0 (greedy), so all answers of a group would be the same: set "
                "group_size to 1, or a temperature."
            )
        return self
