"""How the next token is drawn; apart from `sampling.py`, because options are read without torch.

Names, ranges and formulas are those of vLLM and of OpenAI's API.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

MAX_LOGIT_BIASES = 1024
"""Tokens that one request may bias."""
_MIN_TEMPERATURE = 0.01
_ID = re.compile("[0-9]{1,10}")
_FILTERS_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_PENALTIES_OFF = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


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
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from the logit of every token that the answer already has; 0 switches it
    off."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from a token's logit each time that the answer has it; 0 switches it off."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Divide the positive logits of tokens in prompt or answer by this, and multiply their negative
    ones; 1 switches it off."""
    logit_bias: Annotated[
        tuple[tuple[TokenId, Annotated[float, Field(ge=-100, le=100)]], ...],
        Field(max_length=MAX_LOGIT_BIASES),
    ] = ()
    """Numbers of tokens, each with what is added to its logit, -100 to 100."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Fixes every draw. Greedy decoding draws nothing, so it accepts any seed."""

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Take a mapping too, as the APIs have it; JSON writes its ids as strings."""
        if not isinstance(value, Mapping):
            return value
        return tuple(
            (int(key) if isinstance(key, str) and _ID.fullmatch(key) else key, bias)
            for key, bias in value.items()
        )

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
        ids = [token_id for token_id, _ in self.logit_bias]
        if len(set(ids)) < len(ids):
            twice = next(token_id for token_id in ids if ids.count(token_id) > 1)
            raise ConfigError(f"logit_bias names token {twice} twice: give it one bias")
        if idle := [token_id for token_id, bias in self.logit_bias if bias == 0]:
            raise ConfigError(
                f"logit_bias of token {idle[0]} is 0, which has no effect: leave it out"
            )
        return self

    @property
    def filters(self) -> frozenset[str]:
        """Names of the filters that are switched on."""
        return frozenset(name for name, off in _FILTERS_OFF.items() if getattr(self, name) != off)

    @property
    def penalties(self) -> frozenset[str]:
        """Names of the penalties that are switched on."""
        return frozenset(name for name, off in _PENALTIES_OFF.items() if getattr(self, name) != off)
