"""What the engine says greedily, and how likely it finds it, is what transformers says.

Prompts of several lengths run beside each other in small chunks over a small cache; transformers
computes each whole text anew for every token.
"""

import pytest
import torch

from tests.figures import seen
from tests.numerics.oracles import twin
from tests.tiny import random_ids
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops.sampling_config import SamplingConfig

PRESETS = [
    "v2-tiny",
    "v2-lite-tiny",
    "v3-tiny",
    "r1-distill-llama-tiny",
    "r1-distill-qwen-tiny",
    "qwen3-tiny",
]
LENGTHS, NEW_TOKENS = (1, 9, 30, 47), 16
TOLERANCE = 1e-5


def sharp(preset: str) -> Model:
    """A model without near-ties, as trained ones are."""
    model = Model(get_preset(preset))
    model.initialize(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_greedy_answers_and_log_probabilities_equal_transformers(preset: str) -> None:
    model = sharp(preset)
    prompts = [
        random_ids(1, length, model.config.vocab_size, seed=length)[0].tolist()
        for length in LENGTHS
    ]
    engine = build_engine(model, EngineConfig(max_prefill_chunk=7, num_blocks=40, block_size=4))
    greedy = SamplingConfig(temperature=0)
    numbers = [engine.add(Request(ids, NEW_TOKENS, sampling=greedy)) for ids in prompts]
    told: dict[int, list[tuple[int, float]]] = {number: [] for number in numbers}
    while engine.has_work:
        for output in engine.step():
            assert output.token_id is not None, output.error
            told[output.request_id].append((output.token_id, output.logprob))
    engine.check()

    theirs, largest = twin(model).eval(), 0.0
    for number, ids in zip(numbers, prompts, strict=True):
        for token_id, logprob in told[number]:
            with torch.no_grad():
                expected_W = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert token_id == int(expected_W.argmax())
            largest = max(largest, abs(logprob - float(expected_W[token_id])))
            ids.append(token_id)
    figure = "greedy log-probabilities of the engine against transformers"
    assert seen(figure, torch.tensor(largest), TOLERANCE)
