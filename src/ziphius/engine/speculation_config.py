"""How tokens are guessed ahead; needs no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

_LOOKUP = ("prompt_lookup_max", "prompt_lookup_min")


class SpeculationConfig(Config):
    """How tokens are guessed ahead: it changes how fast they come, never which."""

    method: Literal["ngram", "model", "mtp"]
    """Who guesses: the text itself, where it repeats what it held before; a smaller model with the
    same vocabulary; or the model's own layer for multi-token prediction."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=16)] = 4
    """Most tokens guessed for a sequence in one step."""
    adaptive: bool = True
    """Guess fewer, or none, where measured times and acceptance say that more do not pay."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=32)] = 4
    """ngram: how many last tokens are looked for in the text before them; fewer, if not found."""
    prompt_lookup_min: Annotated[int, Field(ge=1, le=32)] = 2
    """ngram: fewest last tokens that are looked for."""

    @model_validator(mode="after")
    def _check_lookup(self) -> Self:
        given = [name for name in _LOOKUP if name in self.model_fields_set]
        if given and self.method != "ngram":
            raise ConfigError(
                f"{' and '.join(given)} would have no effect: only method ngram looks for tokens, "
                f"and the method is {self.method}"
            )
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min is {self.prompt_lookup_min} and prompt_lookup_max "
                f"{self.prompt_lookup_max}: it must not be larger"
            )
        return self
