"""Adapters of several requests in one batch: each answered as by a model with its adapter alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.adapters import AdapterRunner, AdapterStore, MixedTorchRunner
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.sequence import Request
from ziphius.models.lora import add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights.adapters import load_adapters, save_adapters
from ziphius.ops import native
from ziphius.ops.sampling_config import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
CONFIGS = {
    "latent": latent_config(**V3_EXPERTS, num_hidden_layers=3),
    "grouped": grouped_config(),
}
TARGETS: dict[str, tuple[str, ...]] = {"a": (), "b": ("o_proj",), "c": ()}
PROMPT = list(range(1, 30))


def make_adapter(config: str, name: str, folder: Path) -> Path:
    model = build(CONFIGS[config])
    seed = ord(name)
    add_adapters(model, LoraConfig(rank=2 + seed % 3, targets=TARGETS[name]), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(0, 0.3, generator=generator)
    save_adapters(model, folder, base="base")
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("adapters") / request.param
    return {name: make_adapter(request.param, name, root / name) for name in TARGETS}


def config_of(folders: dict[str, Path]):
    return CONFIGS[folders["a"].parent.name]


def new_store(model: Model, folders: dict[str, Path], max_bytes: int = 10**9) -> AdapterStore:
    store = AdapterStore(model, max_bytes)
    for name, folder in folders.items():
        store.add(name, folder)
    return store


def new_engine(model: Model, store: AdapterStore | None = None, **settings) -> Engine:
    settings = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 8} | settings
    return build_engine(model.eval(), EngineConfig(**settings), adapters=store)


def run(engine: Engine, requests: Sequence[Request]) -> list[tuple[list[int], list[float]]]:
    def not_apart(*_: object) -> None:
        raise AssertionError("a step was computed sequence by sequence, which hides errors")

    engine._logits_apart = not_apart  # type: ignore[assignment,method-assign]
    numbers = [engine.add(request) for request in requests]
    told: dict[int, tuple[list[int], list[float]]] = {number: ([], []) for number in numbers}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            assert output.token_id is not None
            told[output.request_id][0].append(output.token_id)
            told[output.request_id][1].append(output.logprob)
        engine.check()
    return [told[number] for number in numbers]


def requests() -> list[Request]:
    names = ["a", "", "b", "a", "c", ""]
    return [
        Request(PROMPT[: 9 + 3 * number], 8, number, GREEDY, adapter=name)
        for number, name in enumerate(names)
    ]


def alone(folders: dict[str, Path], request: Request) -> tuple[list[int], list[float]]:
    model = build(config_of(folders))
    if request.adapter:
        load_adapters(model, folders[request.adapter])
    [told] = run(new_engine(model), [Request(request.prompt_ids, 8, 0, GREEDY)])
    return told


@pytest.mark.parametrize("limit", ["all", "one"])
@pytest.mark.parametrize("runner", ["native program", "modules"])
def test_a_mixed_batch_answers_each_as_its_own_model_would(folders, limit, runner, monkeypatch):
    if runner == "modules":
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    model = build(config_of(folders))
    store = new_store(model, folders)
    if limit == "one":
        most = max(store.size(store.id_of(name)) for name in folders)
        store = new_store(model, folders, most)
    mixed = run(new_engine(model, store), requests())
    figures = store.metrics()
    assert figures["adapters_resident_bytes"] <= store.max_bytes
    assert (figures["adapters_reads"] > 3) == (limit == "one")
    found = set()
    for request, (ids, logprobs) in zip(requests(), mixed, strict=True):
        expected_ids, expected_logprobs = alone(folders, request)
        assert ids == expected_ids
        torch.testing.assert_close(
            torch.tensor(logprobs), torch.tensor(expected_logprobs), rtol=1e-5, atol=1e-5
        )
        found.add((request.adapter, tuple(logprobs[:1])))
    assert len(found) > 3, "the adapters change something"


WAYS = {
    "together": {},
    "chunks of 5": {"max_prefill_chunk": 5},
    "preempted": {"num_blocks": 24, "prefix_caching": False},
    "few at a time": {"max_num_seqs": 3, "max_num_batched_tokens": 13},
    "in parts": {"limit": "one"},
}


@pytest.mark.skipif(not native.serves(), reason="needs the native kernels")
@pytest.mark.parametrize("way", WAYS)
def test_a_native_program_gives_the_same_bits_alone_and_beside_other_adapters(folders, way):
    settings = dict(WAYS[way])
    model = build(config_of(folders))
    store = new_store(model, folders)
    if settings.pop("limit", ""):
        most = max(store.size(store.id_of(name)) for name in folders)
        store = new_store(model, folders, most)
    engine = new_engine(model, store, **settings)
    assert engine.not_native is None
    expected = [run(new_engine(model, store), [request])[0] for request in requests()]
    assert run(engine, requests()) == expected
    if way == "preempted":
        assert engine.metrics()["num_preemptions"] > 0
    plain = [request for request in requests() if not request.adapter]
    assert run(new_engine(model), plain) == [
        said for request, said in zip(requests(), expected, strict=True) if not request.adapter
    ]


def test_the_model_itself_stays_plain_and_requests_without_adapter_are_its_own(
    folders, monkeypatch
):
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    model = build(config_of(folders))
    kinds = [type(module) for module in model.modules()]
    engine = new_engine(model, new_store(model, folders))
    plain = [Request(PROMPT[:12], 8, 0, GREEDY)]
    assert run(engine, plain) == run(new_engine(model), plain)
    run(engine, requests())
    assert [type(module) for module in model.modules()] == kinds
    assert isinstance(engine.runner, AdapterRunner)
    assert isinstance(engine.runner._mixed, MixedTorchRunner)
    twin = dict(engine.runner._mixed._twin.named_parameters())
    assert all(twin[name] is parameter for name, parameter in model.named_parameters())


def test_what_one_adapter_computed_of_a_prompt_is_not_found_by_another(folders):
    model = build(config_of(folders))
    engine = new_engine(model, new_store(model, folders))
    for name, hits in (("", 0), ("a", 0), ("b", 0), ("a", 28), ("", 28)):
        before = engine.metrics()["prefix_cache_hits"]
        run(engine, [Request(PROMPT, 2, 0, GREEDY, adapter=name)])
        assert engine.metrics()["prefix_cache_hits"] - before == hits


def test_another_adapter_under_an_old_name_finds_nothing_of_the_old_one(folders):
    model = build(config_of(folders))
    store = new_store(model, {"x": folders["a"]})
    engine = new_engine(model, store)
    request = Request(PROMPT, 4, 0, GREEDY, adapter="x")
    first = run(engine, [request])
    store.add("x", folders["c"])
    second = run(engine, [request])
    assert engine.metrics()["prefix_cache_hits"] == 0
    assert first != second
    store.add("x", folders["a"])
    assert run(engine, [request])[0][0] == first[0][0]
    assert engine.metrics()["prefix_cache_hits"] == 28


def test_a_request_goes_on_with_the_adapter_it_began_with(folders):
    model = build(config_of(folders))
    store = new_store(model, {"x": folders["a"]})
    engine = new_engine(model, store)
    request = Request(PROMPT, 6, 0, GREEDY, adapter="x")
    [(expected, _)] = run(engine, [request])
    engine.reset_prefix_cache()
    engine.add(request)
    ids = [engine.step()[0].token_id]
    store.add("x", folders["c"])
    store.remove("x")
    while engine.has_work:
        ids += [output.token_id for output in engine.step()]
    assert ids == expected


def test_an_unknown_adapter_is_refused_and_a_broken_one_ends_its_request_alone(folders, tmp_path):
    model = build(config_of(folders))
    with pytest.raises(ConfigError, match="built without adapters"):
        new_engine(model).add(Request(PROMPT, 2, 0, GREEDY, adapter="a"))
    own = make_adapter(folders["a"].parent.name, "a", tmp_path / "own")
    store = new_store(model, folders | {"own": own})
    most = max(store.size(store.id_of(name)) for name in folders)
    store = new_store(model, {"own": own, "c": folders["c"]}, most)
    engine = new_engine(model, store)
    with pytest.raises(ConfigError, match="'z' is not known; known are: own, c"):
        engine.add(Request(PROMPT, 2, 0, GREEDY, adapter="z"))
    (own / "adapter_model.safetensors").unlink()
    bad = engine.add(Request(PROMPT, 2, 0, GREEDY, adapter="own"))
    good = engine.add(Request(PROMPT, 2, 0, GREEDY, adapter="c"))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    errors = {output.request_id: output.error for output in outputs if output.error}
    assert list(errors) == [bad]
    assert "CheckpointError" in errors[bad]
    assert sum(output.request_id == good for output in outputs) == 2
    engine.check()


def test_what_cannot_be_added_is_refused(folders, tmp_path):
    model = build(config_of(folders))
    store = AdapterStore(model, 100)
    with pytest.raises(ConfigError, match="max_adapter_bytes is 100"):
        store.add("a", folders["a"])
    with pytest.raises(ConfigError, match="name"):
        store.add("", folders["a"])
    with pytest.raises(ConfigError, match="known are: none"):
        store.remove("a")
    with pytest.raises(CheckpointError):
        store.add("a", tmp_path / "nothing")
    other = build(latent_config(hidden_size=32))
    with pytest.raises(CheckpointError):
        AdapterStore(other, 10**9).add("a", folders["a"])
