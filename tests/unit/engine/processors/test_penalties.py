"""`engine/processors/penalties.py` against the formulas, and against transformers."""

import random

import pytest
import torch

from ziphius.engine.processors.penalties import Penalties
from ziphius.ops.sampling_config import SamplingConfig


def by_hand(
    logits: list[float], config: SamplingConfig, prompt: list[int], answer: list[int]
) -> list[float]:
    """Follow vLLM's order and OpenAI's formula, token by token."""
    out = []
    for token_id, logit in enumerate(logits):
        if token_id in prompt or token_id in answer:
            factor = config.repetition_penalty
            logit = logit / factor if logit > 0 else logit * factor
        count = answer.count(token_id)
        logit -= config.frequency_penalty * count
        out.append(logit - config.presence_penalty * (count > 0))
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 0.7},
        {"frequency_penalty": -0.4},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "presence_penalty": -1.0, "frequency_penalty": 0.25},
    ],
)
def test_the_formulas_through_drafts_taken_and_left(settings: dict[str, float]) -> None:
    config, chooser = SamplingConfig(**settings), random.Random(1)
    prompt = [chooser.randrange(150) for _ in range(30)]
    penalties, answer = Penalties(config, prompt), list[int]()
    for _ in range(60):
        drafts = [chooser.randrange(300) for _ in range(chooser.randint(1, 5))]
        for token_id in drafts:
            assert penalties.accept(token_id) is None
        left = chooser.randint(0, len(drafts))
        penalties.rollback(left)
        answer += drafts[: len(drafts) - left]
        logits_W = torch.randn(300, generator=torch.Generator().manual_seed(len(answer)))
        expected = torch.tensor(by_hand(logits_W.tolist(), config, prompt, answer))
        penalties(logits_W, answer)
        torch.testing.assert_close(logits_W, expected, rtol=1e-6, atol=1e-6)
    assert len(set(answer)) > 64  # more than the first room holds


def test_repetition_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits_W = torch.randn(50, generator=torch.Generator().manual_seed(0))
    prompt, answer = [3, 4, 4, 9], [9, 20]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)
    expected = theirs(torch.tensor([prompt + answer]), logits_W[None].clone())[0]
    penalties = Penalties(SamplingConfig(repetition_penalty=1.7), prompt)
    for token_id in answer:
        penalties.accept(token_id)
    penalties(logits_W, answer)
    torch.testing.assert_close(logits_W, expected)
