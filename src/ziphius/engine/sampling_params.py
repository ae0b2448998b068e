"""`SamplingParams`: all that one request may ask of the engine; needs no torch.

Names and meanings are vLLM's, limits those that open servers keep.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.ops.sampling_config import SamplingConfig, TokenId

MAX_COMPLETIONS = 16_384
MAX_STOP_STRINGS, MAX_STOP_LENGTH, MAX_STOP_IDS = 16, 1024, 1024
MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS = 128, 1024
MAX_LOGPROBS = 20
MAX_GRAMMAR_LENGTH = 512 * 1024
MAX_CHOICES = 1024
MAX_TOKENS = 2**31 - 1

Text = Annotated[str, Field(max_length=MAX_GRAMMAR_LENGTH)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class StructuredOutputs(Config):
    """The form that an answer must have: exactly one of these."""

    json_schema: Text | None = None
    """JSON text of a schema."""
    json_object: bool = False
    """Any JSON object."""
    regex: Text | None = None
    """A regular expression that all of the answer matches."""
    choice: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
        Field(max_length=MAX_CHOICES),
    ] = ()
    """The answer is one of these."""
    grammar: Text | None = None
    """EBNF as Lark writes it, in llguidance's dialect."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if len(self.kinds) != 1:
            found = ", ".join(self.kinds) or "none"
            raise ConfigError(
                "structured_outputs needs exactly one of json_schema, json_object, regex, choice "
                f"and grammar, and has {found}"
            )
        return self

    @property
    def kinds(self) -> list[str]:
        """Names of what is set: one."""
        return [
            name for name in type(self).model_fields if getattr(self, name) not in (None, False, ())
        ]


class RepetitionDetection(Config):
    """End an answer that goes round in circles: a pattern of tokens, again and again at its end."""

    max_pattern_size: Annotated[int, Field(ge=1, le=1024)] = 64
    """Longest pattern looked for, in tokens."""
    min_pattern_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Shortest pattern looked for."""
    min_count: Annotated[int, Field(ge=2, le=1024)] = 8
    """How often the pattern must stand there, one directly after the other."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.min_pattern_size > self.max_pattern_size:
            raise ConfigError(
                f"min_pattern_size is {self.min_pattern_size} and max_pattern_size "
                f"{self.max_pattern_size}: no pattern has such a size"
            )
        return self


class SamplingParams(SamplingConfig):
    """What one request asks for: how tokens are drawn, when it ends, and what comes back."""

    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 16
    """Most tokens of each answer; 0 scores the prompt alone and needs `prompt_logprobs`."""
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0
    """No stop token, and no stop string counts, before an answer has this many."""
    n: Annotated[int, Field(ge=1, le=MAX_COMPLETIONS)] = 1
    """Answers to return."""
    best_of: Annotated[int, Field(ge=1, le=MAX_COMPLETIONS)] | None = None
    """Answers to make, of which the `n` with the highest mean log-probability return; by default
    `n`."""
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)] = ()
    """End before any of these texts."""
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=MAX_STOP_IDS)] = ()
    """End after any of these tokens, beside the model's own ends."""
    ignore_eos: bool = False
    """Go on after the model's own ends."""
    bad_words: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Field(min_length=1)], ...],
        Field(max_length=MAX_BAD_WORDS),
    ] = ()
    """Sequences of tokens that the answer never holds."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    """Most likely tokens to return at each position; the drawn one's log-probability always is."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Score the tokens of the prompt and return this many of the most likely ones beside each; by
    default the prompt is not scored."""
    thinking_token_budget: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    """Close the think block after this many tokens in it; by default never."""
    repetition_detection: RepetitionDetection | None = None
    """When to end an answer that repeats itself; by default never."""
    structured_outputs: StructuredOutputs | None = None
    """The form that the answer must have, from the end of its thinking on; by default any."""

    @model_validator(mode="after")
    def _check_request(self) -> Self:
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise ConfigError(
                "max_tokens is 0 and prompt_logprobs is not set: nothing would come back"
            )
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens}, but max_tokens {self.max_tokens}: set it to at "
                "most that"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise ConfigError(f"best_of is {self.best_of}; it must be at least n, {self.n}")
        if self.temperature == 0 and self.completions > 1:
            raise ConfigError(
                "temperature is 0 (greedy), so all answers would be the same: set n and best_of to "
                "1, or a temperature"
            )
        if sum(map(len, self.bad_words)) > MAX_BAD_WORD_TOKENS:
            raise ConfigError(
                f"bad_words have {sum(map(len, self.bad_words)):,} tokens in all; at most "
                f"{MAX_BAD_WORD_TOKENS:,} are allowed"
            )
        return self

    @property
    def completions(self) -> int:
        """Answers that are made."""
        return self.n if self.best_of is None else self.best_of
