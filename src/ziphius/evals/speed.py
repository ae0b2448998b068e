"""How fast a model decodes, at lengths that are the same for every model.

Answers of different models differ in length, and short ones spend their time on the prompt; so the
speed of a model is taken apart from what it says.
"""

import time

from ziphius.engine.generate import Request, generate
from ziphius.models.model import Model

SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 32, 16, 64
ROUNDS = 3


def decode_tokens_per_s(model: Model) -> float:
    """Return new tokens per second of a batch, prompts included, of the fastest of three rounds.

    32 sequences of 64 tokens after 16; nothing ends early.
    """
    requests = [
        Request([number + 1] * PROMPT_TOKENS, NEW_TOKENS, number) for number in range(SEQUENCES)
    ]
    return SEQUENCES * NEW_TOKENS / min(_seconds(model, requests) for _ in range(ROUNDS))


def _seconds(model: Model, requests: list[Request]) -> float:
    started = time.perf_counter()
    generate(model, requests)
    return time.perf_counter() - started
