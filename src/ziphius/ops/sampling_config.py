"""How the next token is drawn; apart from `sampling.py`, because options are read without torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

_MIN_TEMPERATURE = 0.01
_FILTERS_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


class SamplingConfig(Config):
    """How the next token is drawn from the model's distribution."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Draw from the k most likely tokens only; 0 switches it off."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum; 1 switches it off."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the most likely one; 0 switches it off."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Fixes every draw. Greedy decoding draws nothing, so it accepts any seed."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature is {self.temperature}: allowed are 0 (greedy) and "
                f"{_MIN_TEMPERATURE} to 100, below which fp32 logits overflow"
            )
        filters = [name for name in ("top_k", "top_p", "min_p") if name in self.filters]
        if self.temperature == 0 and filters:
            raise ConfigError(
                f"temperature is 0 (greedy), so {', '.join(filters)} would have no effect: "
                f"leave {'it' if len(filters) == 1 else 'them'} out or set a temperature"
            )
        return self

    @property
    def filters(self) -> frozenset[str]:
        """Names of the filters that are switched on."""
        return frozenset(name for name, off in _FILTERS_OFF.items() if getattr(self, name) != off)
