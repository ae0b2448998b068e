"""`engine/build.py`: the numbers of the cache."""

import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config
from ziphius.engine.build import build_engine, new_cache
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.ops.sampling_config import SamplingConfig

CONFIGS = {"latent": latent_config(**V3_EXPERTS), "grouped": grouped_config()}
SMALL = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 2}


def prompt_logprobs(model: torch.nn.Module, chunk: int | None, cache_dtype: str) -> torch.Tensor:
    """Return the log-probability of greedy tokens behind a prompt, computed in chunks."""
    settings = {**SMALL, "max_prefill_chunk": chunk, "cache_dtype": cache_dtype}
    engine = build_engine(model, EngineConfig(**settings))
    engine.add(Request(list(range(1, 30)), 12, 0, SamplingConfig(temperature=0)))
    logprobs = []
    while engine.has_work:
        logprobs += [output.logprob for output in engine.step()]
    return torch.tensor(logprobs)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_in_bfloat16_takes_half_and_is_near(name):
    model = build(CONFIGS[name]).eval()
    exact, rounded = (
        new_cache(model, EngineConfig(**SMALL, cache_dtype=dtype)) for dtype in ("auto", "bfloat16")
    )
    assert exact.size_bytes == 2 * rounded.size_bytes
    assert {part.dtype for parts in rounded.parts for part in parts} == {torch.bfloat16}
    wanted = prompt_logprobs(model, None, "auto")
    found = prompt_logprobs(model, None, "bfloat16")
    assert not torch.equal(found[:1], wanted[:1])
    torch.testing.assert_close(found[:1], wanted[:1], rtol=0, atol=0.1)
    chunked = prompt_logprobs(model, 7, "bfloat16")
    torch.testing.assert_close(chunked, found, rtol=1e-4, atol=1e-4)


def test_a_model_in_bfloat16_has_such_a_cache():
    model = build(CONFIGS["latent"]).eval().bfloat16()
    cache = new_cache(model, EngineConfig(**SMALL))
    assert {part.dtype for parts in cache.parts for part in parts} == {torch.bfloat16}
