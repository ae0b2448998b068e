"""The engine on real models: tokens and log-probabilities do not hang on how they were come by.

Bit for bit where the model runs as a native program; the module tree, whose products sum in another
order for another number of rows, is held to 1e-5 and equal greedy tokens.
"""

from dataclasses import replace

import pytest
import torch

from tests.tiny import build, grouped_config
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.runner import TorchRunner
from ziphius.engine.sequence import Request
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops import native
from ziphius.ops.sampling_config import SamplingConfig

SAMPLED = SamplingConfig(seed=3, temperature=0.8, top_p=0.95)
GREEDY = SamplingConfig(temperature=0)
REQUESTS = [
    Request([5, 6, 7, 8] * 9, 14, 0, SAMPLED, n=3),
    Request([5, 6, 7, 8] * 9 + [9], 9, 3, GREEDY),
    Request([5, 6, 7, 8] * 5, 12, 4, SAMPLED),
    Request([1], 20, 5, SAMPLED, n=2),
    Request([40, 2] * 45, 6, 7, SAMPLED, logprobs=2, prompt_logprobs=1),
    Request([40, 2] * 40, 6, 8, GREEDY, cache_salt="other"),
]
WAYS = {
    "no prefix cache": {"prefix_caching": False},
    "chunks of 1": {"max_prefill_chunk": 1},
    "chunks of 7": {"max_prefill_chunk": 7},
    "chunks of 16": {"max_prefill_chunk": 16},
    "chunks of 64": {"max_prefill_chunk": 64},
    "few tokens a step": {"max_num_batched_tokens": 13},
    "one at a time": {"max_num_seqs": 1},
    "small blocks": {"block_size": 3, "num_blocks": 300},
    "preempted": {"block_size": 4, "num_blocks": 27, "prefix_caching": False},
    "preempted, with prefix cache": {"block_size": 4, "num_blocks": 27},
}


@pytest.fixture(scope="module", params=["v3-tiny", "coder-tiny", "grouped"])
def model(request) -> Model:
    if request.param == "grouped":
        return build(grouped_config(max_position_embeddings=256)).eval()
    model = Model(get_preset(request.param))
    model.initialize(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # sharper logits, so that greedy has no near-ties
    return model.eval()


def run(engine: Engine, requests: list[Request]) -> dict[tuple[int, int], list]:
    """Return all that is said of each sequence."""
    told: dict[tuple[int, int], list] = {}
    number_of = {engine.add(request): place for place, request in enumerate(requests)}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            said = output._replace(request_id=0)
            told.setdefault((number_of[output.request_id], output.sample), []).append(said)
        engine.check()
    return told


def engine_of(model: Model, **settings) -> Engine:
    config = {"num_blocks": 100, "max_num_seqs": 8, "max_num_batched_tokens": 512} | settings
    return build_engine(model, EngineConfig(**config))


@pytest.fixture(scope="module")
def alone(model) -> dict:
    """Each sequence for itself: no prefix cache, whole prompt, nobody beside it."""
    told = {}
    for number, request in enumerate(REQUESTS):
        for sample in range(request.n):
            one = replace(request, n=1, sequence_id=request.sequence_id + sample)
            found = run(engine_of(model, max_num_seqs=1, prefix_caching=False), [one])
            told[number, sample] = [said._replace(sample=sample) for said in found[0, 0]]
            if sample:
                told[number, sample][0] = told[number, sample][0]._replace(prompt_scores=None)
    return told


@pytest.mark.skipif(not native.serves(), reason="needs the native kernels")
@pytest.mark.parametrize("way", WAYS)
def test_a_native_program_gives_the_same_bits_however_it_is_run(model, alone, way):
    engine = engine_of(model, **WAYS[way])
    assert engine.not_native is None
    assert run(engine, REQUESTS) == alone
    if way.startswith("preempted"):
        assert engine.metrics()["num_preemptions"] > 0
    # Once more: now all prompts are known, but for their last tokens.
    assert run(engine, REQUESTS) == alone
    if way == "preempted, with prefix cache":
        assert engine.metrics()["prefix_cache_hits"] > 0


@pytest.mark.parametrize("way", ["no prefix cache", "chunks of 7", "preempted, with prefix cache"])
def test_modules_give_the_same_greedy_tokens_however_they_are_run(model, way):
    requests = [replace(request, sampling=GREEDY, n=1) for request in REQUESTS]
    engines = [engine_of(model, max_num_seqs=1), engine_of(model, **WAYS[way])]
    for engine in engines:
        engine.runner = TorchRunner(model)
    expected, told = (run(engine, requests) for engine in engines)
    for key, said in told.items():
        assert [one.token_id for one in said] == [one.token_id for one in expected[key]]
        logprobs = [one.logprob for one in said]
        assert logprobs == pytest.approx([one.logprob for one in expected[key]], abs=1e-5)
