"""How fast models decode, at lengths that are the same for every model.

Answers of different models differ in length, and short ones spend their time on the prompt; so the
speed of a model is taken apart from what it says. Models take turns, so that a slow moment of the
machine does not fall on one of them alone.
"""

import statistics
import time
from collections.abc import Sequence

from ziphius.engine.build import build_engine, evaluation_mode
from ziphius.engine.engine import Engine
from ziphius.engine.generate import BLOCK_SIZE, Request, complete, fitting
from ziphius.models.model import Model

SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 32, 16, 64
ROUNDS = 11


def decode_tokens_per_s(models: Sequence[Model], rounds: int = ROUNDS) -> list[float]:
    """Return new tokens per second of a batch, prompts included, of each model's median round.

    32 sequences of 64 tokens after 16; nothing ends early.

    Args:
        models: that take turns.
        rounds: of turns, after one to warm up.
    """
    requests = [
        Request([number + 1] * PROMPT_TOKENS, NEW_TOKENS, number) for number in range(SEQUENCES)
    ]
    # The prompts are no longer than a block, so that none is found in the prefix cache.
    assert PROMPT_TOKENS <= BLOCK_SIZE
    engines = [(build_engine(model, fitting(requests)), model) for model in models]
    turns = [[_seconds(*pair, requests) for pair in engines] for _ in range(1 + rounds)]
    return [
        SEQUENCES * NEW_TOKENS / statistics.median(times) for times in zip(*turns[1:], strict=True)
    ]


def _seconds(engine: Engine, model: Model, requests: list[Request]) -> float:
    with evaluation_mode(model):
        started = time.perf_counter()
        complete(engine, model, requests)
        return time.perf_counter() - started
