"""What a model can be asked, and the errors of requests that it can never answer."""

from typing import NamedTuple

from ziphius.core.errors import ConfigError
from ziphius.engine.sequence import Request


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
    if new < 1 and not (new == 0 and request.prompt_logprobs is not None and request.n == 1):
        raise ConfigError(f"max_new_tokens of {name} is {new}; it must be at least 1")
    if request.n < 1:
        raise ConfigError(f"n of {name} is {request.n}; it must be at least 1")
    room = limits.context_length - length
    if new > room:
        remedy = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
        raise ConfigError(
            f"{name} has {length} tokens and asks for {new} more, but the model's context "
            f"(max_position_embeddings) is {limits.context_length} tokens: {remedy}"
        )
