"""Adapters in the native program: each row by its own one, the same bits whatever is beside it."""

import copy

import pytest
import torch
from torch import Tensor

from tests.figures import seen
from tests.paged import Sequences, logits_of, paged_cache
from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.engine.native_runner import NativeRunner
from ziphius.engine.runner import RunnerOutput
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.lora import projections
from ziphius.models.lora_mixed import Adapter, LowRank
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops import native

pytestmark = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
TOLERANCE = 1e-5
CONFIGS = {
    "latent, experts": latent_config(**V3_EXPERTS, num_hidden_layers=3),
    "v3": get_preset("v3-tiny"),
    "v2-lite": get_preset("v2-lite-tiny"),
    "grouped": grouped_config(),
    "odd": grouped_config(hidden_size=40, intermediate_size=70, head_dim=10),
}
RANKS = {"a": 3, "b": 40, "c": 8}
NAMES = ["a", "", "b", "c", "a", ""]
LENGTHS = [37, 150, 5, 70, 3, 40]


def adapter_of(model: Model, name: str) -> Adapter:
    """Matrices at random for all projections; c has some of them, a and b all."""
    generator = torch.Generator().manual_seed(ord(name))
    adapter = {}
    for layer_name, layer in projections(model):
        if name == "c" and not layer_name.endswith(("o_proj", "up_proj", "kv_b_proj")):
            continue
        rank = min(RANKS[name], *layer.weight.shape)
        down = torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
        up = torch.randn(layer.out_features, rank, generator=generator) * rank**-0.5
        adapter[layer_name] = LowRank(down, up, 0.3)
    return adapter


def merged(model: Model, adapter: Adapter) -> Model:
    model = copy.deepcopy(model)
    for name, layer in projections(model):
        if name in adapter:
            own = adapter[name]
            layer.weight.data += own.scaling * (own.up_Or @ own.down_rI).to(layer.weight.dtype)
    return model


def logits(
    model: Model,
    places: list[int],
    chunks: list[int] | None = None,
    *,
    threads: int = 1,
    plain: bool = False,
) -> dict[int, Tensor]:
    """Run some of the sequences together; returns the logits of each."""
    adapters = {name: adapter_of(model, name) for name in RANKS}
    vocabulary, dtype = model.config.vocab_size, model.model.norm.weight.dtype
    ids = [random_ids(1, LENGTHS[place], vocabulary, seed=place)[0] for place in places]
    cache = paged_cache(model, 100, 4, dtype)
    names = None if plain else [NAMES[place] for place in places]
    runner = NativeRunner(model, cache, threads=threads, takes_adapters=not plain)

    def run(batch: ForwardBatch) -> RunnerOutput:
        return runner(batch, adapters)

    found = logits_of(run, Sequences(cache, ids, adapters=names), chunks, threads)
    return dict(zip(places, found, strict=True))


@pytest.fixture(scope="module", params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_hangs_on_its_own_adapter_alone(config: ModelConfig, dtype: torch.dtype) -> None:
    model = build(config).to(dtype).eval()
    alone: dict[int, Tensor] = {}
    for place, name in enumerate(NAMES):
        alone |= logits(model, [place], plain=not name)
    everybody = list(range(len(NAMES)))
    for threads, chunks in ((1, [1000]), (2, [1, 7, 16]), (3, [64, 3])):
        together = logits(model, everybody, chunks, threads=threads)
        assert all(torch.equal(together[place], alone[place]) for place in everybody)
    plain = logits(model, everybody, plain=True)
    changed = [not torch.allclose(plain[place], alone[place]) for place in everybody]
    assert changed == [bool(name) for name in NAMES]


def test_an_adapter_does_what_merged_weights_do(config: ModelConfig) -> None:
    model = build(config).eval()
    together = logits(model, list(range(len(NAMES))), [16, 5])
    for place, name in enumerate(NAMES):
        own = merged(model, adapter_of(model, name)) if name else model
        expected = logits(own, [place], plain=True)[place]
        difference = (together[place] - expected).norm() / expected.norm()
        assert seen("native program with adapters = merged weights", difference, TOLERANCE)


def test_a_runner_refuses_adapters_that_its_program_was_not_written_for() -> None:
    model = build(CONFIGS["grouped"]).eval()
    cache = paged_cache(model, 10, 4, torch.float32)
    batch = Sequences(cache, [torch.arange(3)], adapters=["a"]).batch([(0, 3)])
    with pytest.raises(ValueError, match="takes no adapters"):
        NativeRunner(model, cache)(batch, {"a": adapter_of(model, "a")})


def test_what_the_caller_lets_go_of_is_let_go_of() -> None:
    model = build(CONFIGS["grouped"]).eval()
    cache = paged_cache(model, 10, 4, torch.float32)
    runner = NativeRunner(model, cache, takes_adapters=True)
    both = {name: adapter_of(model, name) for name in "ab"}
    sequences = Sequences(cache, [torch.arange(3), torch.arange(4)], adapters=["a", "b"])
    runner(sequences.batch([(0, 2), (1, 2)]), both)
    of_both = runner.adapter_bytes
    runner(sequences.batch([(1, 1)]), {"b": both["b"]})
    assert 0 < runner.adapter_bytes < of_both
