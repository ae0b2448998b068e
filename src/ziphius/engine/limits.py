"""What a model can be asked, and the errors of requests that it can never answer."""

from numbers import Integral
from typing import NamedTuple

from ziphius.core.errors import ConfigError
from ziphius.engine.sequence import Request

SEQUENCE_IDS = 2**63
"""Numbers of sequences lie below it."""


class Limits(NamedTuple):
    """What a model can be asked."""

    context_length: int
    """Tokens of prompt and completion together."""
    vocab_size: int
    """Rows of its embedding."""


def check_request(request: Request, limits: Limits, name: str = "the prompt") -> None:
    """Refuse a request that the model can never answer.

    Args:
        request: to be looked at.
        limits: of the model.
        name: of its prompt, for the message.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    length, new = len(request.prompt_ids), request.max_new_tokens
    if length == 0:
        raise ConfigError(f"{name} is empty: it needs at least one token to start from")
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= limits.vocab_size:
        wrong = next(i for i in request.prompt_ids if not 0 <= i < limits.vocab_size)
        raise ConfigError(
            f"{name} holds token {wrong}, but the model knows 0 to {limits.vocab_size - 1}: give "
            "ids of its own tokenizer"
        )
    _check_numbers(request, limits, name)
    if new < 1 and not (new == 0 and request.prompt_logprobs is not None and request.n == 1):
        raise ConfigError(f"max_new_tokens of {name} is {new}; it must be at least 1")
    room = limits.context_length - length
    if new > room:
        remedy = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
        raise ConfigError(
            f"{name} has {length} tokens and asks for {new} more, but the model's context "
            f"(max_position_embeddings) is {limits.context_length} tokens: {remedy}"
        )


def _check_numbers(request: Request, limits: Limits, name: str) -> None:
    """Refuse what is no whole number, or one that nothing could be done with."""
    scored = request.prompt_logprobs
    for field, value, least, most in (
        ("max_new_tokens", request.max_new_tokens, None, None),
        ("n", request.n, 1, None),
        ("priority", request.priority, None, None),
        ("logprobs", request.logprobs, 0, limits.vocab_size),
        ("prompt_logprobs", 0 if scored is None else scored, 0, limits.vocab_size),
        ("sequence_id", request.sequence_id, 0, SEQUENCE_IDS - 1),
    ):
        told = f"{field} of {name} is {value!r}; it must be"
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ConfigError(f"{told} a whole number")
        if least is not None and value < least:
            raise ConfigError(f"{told} at least {least}")
        if most is not None and value > most:
            raise ConfigError(f"{told} at most {most}")
    if request.sequence_id + request.n > SEQUENCE_IDS:
        raise ConfigError(
            f"sequence_id of {name} is {request.sequence_id}, and {request.n} samples count on "
            f"from it; the last one must be at most {SEQUENCE_IDS - 1}"
        )
