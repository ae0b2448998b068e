"""`engine/sampling_params.py`: what a request may ask for, and what would have no effect."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from ziphius.core.config import explain
from ziphius.core.errors import ConfigError
from ziphius.engine.processors import Thinking, of_params, of_sampling
from ziphius.engine.sampling_params import (
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_GRAMMAR_LENGTH,
    MAX_STOP_STRINGS,
    RepetitionDetection,
    SamplingParams,
    StructuredOutputs,
)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_tokens": -1}, "max_tokens: .* greater than or equal to 0"),
        ({"max_tokens": 2**63}, "max_tokens: .* less than or equal to"),
        ({"max_tokens": 0}, "max_tokens is 0 and prompt_logprobs is not set"),
        ({"min_tokens": 17}, "min_tokens is 17, but max_tokens 16"),
        ({"n": 0}, "n: "),
        ({"n": 10**9}, "n: .* less than or equal to 16384"),
        ({"n": 3, "best_of": 2}, "best_of is 2; it must be at least n, 3"),
        ({"best_of": 10**9}, "best_of: "),
        ({"temperature": 0, "n": 2}, "temperature is 0 .* would be the same"),
        ({"temperature": 0, "best_of": 2}, "temperature is 0 .* would be the same"),
        ({"stop": ("",)}, "stop.0: .* at least 1 character"),
        ({"stop": ("a" * 10**6,)}, "stop.0: .* at most 1024"),
        ({"stop": ("a",) * (MAX_STOP_STRINGS + 1)}, "stop: .* at most 16"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids.0: "),
        ({"stop_token_ids": (True,)}, "stop_token_ids.0: .* valid integer"),
        ({"bad_words": ((),)}, "bad_words.0: .* at least 1 item"),
        ({"bad_words": ((1,),) * (MAX_BAD_WORDS + 1)}, "bad_words: .* at most 128"),
        ({"bad_words": ((1,) * 1025,)}, "bad_words have 1,025 tokens in all"),
        ({"logprobs": 21}, "logprobs: .* less than or equal to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs: "),
        ({"thinking_token_budget": -1}, "thinking_token_budget: "),
        ({"presence_penalty": 2.1}, "presence_penalty: "),
        ({"frequency_penalty": float("nan")}, "frequency_penalty: .* finite"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: "),
        ({"repetition_penalty": 1e308}, "repetition_penalty: "),
        ({"logit_bias": {5: 101}}, "logit_bias.0.1: .* less than or equal to 100"),
        ({"logit_bias": {-5: 1}}, "logit_bias.0.0: "),
        ({"logit_bias": {1.5: 1}}, "logit_bias.0.0: "),
        ({"logit_bias": {5: float("inf")}}, "logit_bias.0.1: .* finite"),
        ({"logit_bias": {5: 0}}, "logit_bias of token 5 is 0, which has no effect"),
        ({"logit_bias": ((5, 1), (5, 2))}, "logit_bias names token 5 twice"),
        ({"logit_bias": dict.fromkeys(range(10**5), 1)}, "logit_bias: .* at most 1024"),
        ({"seed": 2**64}, "seed: "),
        ({"top_k": -2}, "top_k: "),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(**settings)
    message = explain(caught.value)
    assert re.match(complaint, message), message
    assert len(message) < 500


def test_a_mapping_of_biases_is_taken() -> None:
    assert SamplingParams(logit_bias={5: -100, 7: 1.5}).logit_bias == ((5, -100.0), (7, 1.5))


def test_answers_to_make() -> None:
    assert SamplingParams(n=3).completions == 3
    assert SamplingParams(n=3, best_of=5).completions == 5


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "exactly one of .* has none"),
        ({"regex": "a", "choice": ("b",)}, "has regex, choice"),
        ({"regex": "a" * (MAX_GRAMMAR_LENGTH + 1)}, "regex: .* at most"),
        ({"choice": ("a",) * (MAX_CHOICES + 1)}, "choice: .* at most 1024"),
        ({"choice": ("",)}, "choice.0: "),
    ],
)
def test_an_answer_has_one_form(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StructuredOutputs(**settings)
    assert re.search(complaint, explain(caught.value))


def test_patterns_have_a_size() -> None:
    with pytest.raises(ValidationError, match="no pattern has such a size"):
        RepetitionDetection(min_pattern_size=5, max_pattern_size=4)


def test_processors_are_what_was_asked_for() -> None:
    assert of_sampling(SamplingParams(top_p=0.5), [1]) == []
    assert of_params(SamplingParams(), stop_ids=[1]) == []
    asked = SamplingParams(
        logit_bias={1: 1},
        presence_penalty=1,
        bad_words=((1,),),
        min_tokens=3,
        thinking_token_budget=5,
        repetition_detection=RepetitionDetection(),
    )
    first = [type(found).__name__ for found in of_sampling(asked, [1])]
    rest = of_params(asked, stop_ids=[1], thinking=Thinking((9,)))
    assert first == ["LogitBias", "Penalties"]
    assert [type(found).__name__ for found in rest] == [
        *["BadWords", "MinTokens", "ThinkingBudget", "RepetitionGuard"]
    ]
    with pytest.raises(ConfigError, match="thinking_token_budget has no effect"):
        of_params(asked, stop_ids=[1])


def test_a_bias_out_of_json_has_its_ids_as_strings() -> None:
    assert SamplingParams(logit_bias={"99999": 1}).logit_bias == ((99999, 1.0),)
    for wrong in ("a", "-1", "1.0", "9" * 5000, "\u0663"):
        with pytest.raises(ValidationError, match="logit_bias"):
            SamplingParams(logit_bias={wrong: 1})
