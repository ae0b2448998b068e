"""`engine/build.py`: the numbers of the cache."""

import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config
from ziphius.engine.build import build_engine, new_cache
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.ops import native
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


@pytest.mark.parametrize("runs", ["native", "modules"])
@pytest.mark.parametrize("cache_dtype", ["int8", "fp8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_in_8_bits_is_near_and_knows_no_chunks(name, cache_dtype, runs, monkeypatch):
    model = build(CONFIGS[name]).eval()
    if runs == "modules":
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    wanted = prompt_logprobs(model, None, "auto")
    found = prompt_logprobs(model, None, cache_dtype)
    assert not torch.equal(found[:1], wanted[:1])
    torch.testing.assert_close(found[:1], wanted[:1], rtol=0, atol=0.1)
    for chunk in (1, 7):
        chunked = prompt_logprobs(model, chunk, cache_dtype)
        if runs == "native" and native.serves():
            assert torch.equal(chunked, found)
        torch.testing.assert_close(chunked, found, rtol=0, atol=0.05)


def test_the_default_cache_counts_the_bytes_of_its_numbers(monkeypatch):
    model = build(CONFIGS["latent"]).eval()
    # A quarter of this memory is what decides.
    monkeypatch.setattr("ziphius.engine.build.free_bytes", lambda device: 40_000)
    monkeypatch.setattr("ziphius.engine.build.refuse_too_large", lambda *arguments: None)
    sizes = {}
    for cache_dtype in ("auto", "int8", "fp8"):
        cache = new_cache(model, EngineConfig(block_size=4, cache_dtype=cache_dtype))
        assert cache.size_bytes <= 10_000 < cache.size_bytes * (1 + 1 / cache.num_blocks)
        sizes[cache_dtype] = cache.num_blocks
    # 2 layers of 12 + 6 numbers in float32, or 4 + 12 bytes of a scale and 6 numbers, and 12.
    assert sizes == {"auto": 10_000 // (4 * 144), "int8": 10_000 // (4 * 56), "fp8": 44}


def test_a_model_in_bfloat16_has_such_a_cache():
    model = build(CONFIGS["latent"]).eval().bfloat16()
    cache = new_cache(model, EngineConfig(**SMALL))
    assert {part.dtype for parts in cache.parts for part in parts} == {torch.bfloat16}
