"""Experts that stay in their files: the numbers of the whole model, in less memory."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.offload import ExpertCache, expert_cache
from ziphius.models.weights import load, save, save_gguf, tensor_reader
from ziphius.quant.int8 import quantize

CONFIGS = {
    "v3": latent_config(**V3_EXPERTS, num_hidden_layers=3, num_nextn_predict_layers=1),
    "v2": latent_config(**V2_EXPERTS, num_hidden_layers=3),
}
EXPERT_NUMBERS = 3 * 12 * 24


def saved(config: ModelConfig, folder: Path, weight_format: str = "float32") -> Path:
    save(build(config), folder, weight_format=weight_format)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(CONFIGS[request.param], tmp_path_factory.mktemp("offload") / request.param)


def logits(model: Model, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(ids_BT).hidden_BTD)


@pytest.mark.parametrize("native", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [3, 5, 7, 1000])
def test_numbers_are_those_of_the_whole_model(
    folder: Path, held: int, dtype: torch.dtype, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native == "off":
        monkeypatch.setattr("ziphius.ops.native.serves", lambda *_: False)
    whole = load(folder, dtype=dtype)
    limit = held * EXPERT_NUMBERS * dtype.itemsize + 5
    parts = load(folder, dtype=dtype, expert_cache=limit)
    cache = expert_cache(parts)
    assert cache is not None
    for seed, length in enumerate((9, 1, 1, 2, 1, 17)):
        ids_BT = random_ids(2, length, 61, seed)
        assert torch.equal(logits(parts, ids_BT), logits(whole, ids_BT))
        assert cache.metrics()["expert_cache_bytes"] <= limit
    figures = cache.metrics()
    read = (figures["expert_cache_queries"] - figures["expert_cache_hits"]) * cache.size_bytes
    assert figures["expert_cache_read_bytes"] == read // cache.num_places


def test_experts_in_fp8_are_multiplied_out_as_they_are_read(tmp_path: Path) -> None:
    folder = saved(CONFIGS["v3"], tmp_path / "fp8", "fp8")
    ids_BT = random_ids(2, 9, 61)
    parts = load(folder, expert_cache=4 * EXPERT_NUMBERS * 2)
    assert torch.equal(logits(parts, ids_BT), logits(load(folder), ids_BT))


def test_dropped_pairs_and_batches_without_tokens(folder: Path) -> None:
    whole, parts = load(folder), load(folder, expert_cache=4 * EXPERT_NUMBERS * 4)
    name = "model.layers.1.mlp.experts"
    experts, offloaded = whole.get_submodule(name), parts.get_submodule(name)
    x_MD, base_MD = torch.randn(5, 24), torch.randn(5, 24)
    weights_MK = torch.rand(5, 2)
    mixed_MK = torch.tensor([[8, 1], [8, 8], [2, 8], [7, 6], [0, 5]])
    with torch.inference_mode():
        for chosen_MK in (mixed_MK, torch.full((5, 2), 8)):
            wanted = experts(x_MD, chosen_MK, weights_MK, base_MD)
            assert torch.equal(offloaded(x_MD, chosen_MK, weights_MK, base_MD), wanted)
        empty = offloaded(x_MD[:0], mixed_MK[:0], weights_MK[:0], base_MD[:0])
        assert empty.shape == (0, 24)


class Counting:
    """Experts whose weights are their number."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int]] = []
        self.announced: list[tuple[str, list[int]]] = []
        self.reads_then: list[int] = []

    def read(
        self, layer: str, expert: int, gate_up_2FD: torch.Tensor, down_DF: torch.Tensor
    ) -> None:
        self.reads.append((layer, expert))
        if expert == 6:
            raise CheckpointError("gone")
        gate_up_2FD.fill_(expert)
        down_DF.fill_(expert)

    def announce(self, layer: str, experts: Collection[int]) -> None:
        self.announced.append((layer, list(experts)))
        self.reads_then.append(len(self.reads))

    def identity(self) -> str:
        return ""


def small_cache(held: int) -> tuple[ExpertCache, Counting]:
    source = Counting()
    limit = held * EXPERT_NUMBERS * 4
    return ExpertCache(source, CONFIGS["v3"], ["a", "b"], torch.float32, limit), source


def use(cache: ExpertCache, layer: str, *experts: int) -> None:
    for wave in cache.waves(layer, experts):
        for expert, place in wave.items():
            assert (cache.pool[0][place] == expert).all()
            assert (cache.pool[1][place] == expert).all()


def test_what_is_used_often_stays_and_what_was_used_last_comes_next() -> None:
    cache, source = small_cache(3)
    for _ in range(3):
        use(cache, "a", 0, 1)
    use(cache, "b", 2)
    source.reads.clear()
    use(cache, "b", 3)
    use(cache, "a", 0, 1)
    assert source.reads == [("b", 3)]
    use(cache, "b", 3)
    use(cache, "b", 2)  # in the place of an expert of layer a: of equal use, but not as late
    assert source.reads == [("b", 3), ("b", 2)]


def test_old_uses_count_less() -> None:
    cache, source = small_cache(2)
    for _ in range(40):
        use(cache, "a", 0)
    for _ in range(30):
        use(cache, "b", 1)
    use(cache, "b", 2)  # in the place of a's, which was used more often, but earlier
    source.reads.clear()
    use(cache, "b", 1, 2)
    assert not source.reads


def test_what_a_wave_needs_stays_for_its_length() -> None:
    cache, _ = small_cache(3)
    for _ in range(5):
        use(cache, "a", 0, 1)
    use(cache, "b", 2)
    use(cache, "b", 2, 3)


def test_an_expert_that_cannot_be_read_is_not_taken_for_another() -> None:
    cache, source = small_cache(2)
    use(cache, "a", 1, 2)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="gone"):
            use(cache, "a", 6)
    use(cache, "a", 1, 2)
    use(cache, "a", 3, 4, 5)
    assert len(source.reads) == 2 + 2 + 1 + 3


def test_what_is_missing_is_announced_before_the_first_is_read() -> None:
    cache, source = small_cache(4)
    use(cache, "a", 0, 1)
    use(cache, "a", 1, 2, 3, 4, 5)
    assert source.announced == [("a", [0, 1]), ("a", [2, 3, 4, 5])]
    assert source.reads_then == [0, 2]


def test_announced_files_are_fetched_and_a_gone_one_is_named_by_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(CONFIGS["v3"], tmp_path / "model")
    model = load(folder, expert_cache=10**9)
    cache = expert_cache(model)
    assert cache is not None
    layer = next(iter(cache._layers))
    hints: list[tuple[int, int]] = []
    monkeypatch.setattr(tensor_reader, "HINT_BYTES", 500)
    monkeypatch.setattr(
        "os.posix_fadvise",
        lambda _, start, size, advice: hints.append((start, size)),
        raising=False,
    )
    monkeypatch.setattr("os.POSIX_FADV_WILLNEED", 3, raising=False)
    cache.source.announce(layer, [2])
    assert sum(size for _, size in hints) == EXPERT_NUMBERS * 4
    assert max(size for _, size in hints) == 500
    content = (folder / "model.safetensors").read_bytes()
    places = torch.zeros(24, 24), torch.zeros(24, 12)
    cache.source.read(layer, 2, *places)
    found = b"".join(content[start : start + size] for start, size in hints)
    numbers = torch.frombuffer(bytearray(found), dtype=torch.float32)
    assert torch.equal(numbers.sort()[0], torch.cat([x.flatten() for x in places]).sort()[0])
    other = load(folder, expert_cache=10**9)
    (folder / "model.safetensors").unlink()
    lost = expert_cache(other)
    assert lost is not None
    lost.source.announce(layer, [1])
    with pytest.raises(CheckpointError):
        lost.source.read(layer, 1, *places)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    folder = saved(CONFIGS["v3"], tmp_path / "cut")
    file = folder / "model.safetensors"
    model = load(folder, expert_cache=4 * EXPERT_NUMBERS * 4)
    ids_BT = random_ids(2, 9, 61)
    os.truncate(file, 3000)
    with pytest.raises(CheckpointError, match=r"model.safetensors ended while it was read"):
        logits(model, ids_BT)
    with pytest.raises(CheckpointError, match="truncated"):
        load(folder, expert_cache=4 * EXPERT_NUMBERS * 4)


def test_weights_that_are_not_finite_are_found_when_they_are_read(tmp_path: Path) -> None:
    model = build(CONFIGS["v3"])
    model.get_parameter("model.layers.1.mlp.experts.down_proj").data[:, 0, 0] = torch.nan
    save(model, tmp_path / "model")
    parts = load(tmp_path / "model", check_finite=True, expert_cache=4 * EXPERT_NUMBERS * 4)
    with pytest.raises(CheckpointError, match=r"infinity in model.layers.1.mlp.experts.\d.down"):
        logits(parts, random_ids(4, 20, 61))


def test_training_and_saving_are_refused(folder: Path, tmp_path: Path) -> None:
    model = load(folder, expert_cache=4 * EXPERT_NUMBERS * 4)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="offloaded"):
        model.train()
    with pytest.raises(ConfigError, match="offloaded"):
        save(model, tmp_path / "again")
    with pytest.raises(ConfigError, match="offloaded"):
        save_gguf(model, tmp_path / "again.gguf", {}, weight_format="float32")
    model.requires_grad_(True)
    with pytest.raises(ConfigError, match="offloaded"):
        model(random_ids(1, 3, 61))


def test_what_cannot_be_offloaded_is_refused(tmp_path: Path) -> None:
    dense = saved(grouped_config(), tmp_path / "dense")
    with pytest.raises(ConfigError, match="has no experts"):
        load(dense, expert_cache=10**9)
    quantized = build(CONFIGS["v3"])
    quantize(quantized)
    save(quantized, tmp_path / "int8")
    with pytest.raises(ConfigError, match="INT8"):
        load(tmp_path / "int8", expert_cache=10**9)
    folder = saved(CONFIGS["v3"], tmp_path / "v3")
    with pytest.raises(ConfigError, match=r"holds 1 experts, .* give it 6,912 or more"):
        load(folder, expert_cache=5000)
    (tmp_path / "dense.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="GGUF"):
        load(tmp_path / "dense.gguf", expert_cache=10**9)


PEAK = """
import json, sys
import torch
from ziphius.models.weights import load
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
torch.zeros(8, 8) @ torch.zeros(8, 8)
start = peak()
limit = int(sys.argv[2])
model = load(sys.argv[1], expert_cache=limit or None)
ids_BT = torch.arange(1, 13).view(1, 12)
with torch.inference_mode():
    for _ in range(3):
        last_BD = model(ids_BT).hidden_BTD[:, -1]
        ids_BT = torch.cat((ids_BT, model.logits(last_BD).argmax(-1, keepdim=True)), 1)
print(json.dumps({"ids": ids_BT.tolist(), "bytes": peak() - start}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_a_model_larger_than_the_limit_runs_within_it(tmp_path: Path) -> None:
    experts = V3_EXPERTS | {"n_routed_experts": 16, "moe_intermediate_size": 256}
    config = latent_config(**experts, hidden_size=512, num_hidden_layers=4)
    folder = tmp_path / "large"
    model = Model(config)
    model.initialize(seed=0)
    save(model, folder)
    expert_bytes = 3 * 256 * 512 * 4
    total, limit = 3 * 16 * expert_bytes, 6 * expert_bytes

    def run(limit: int) -> tuple[list[int], int]:
        command = [sys.executable, "-c", PEAK, str(folder), str(limit)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        return answer["ids"], answer["bytes"]

    (whole_ids, whole_bytes), (ids, peak_bytes) = run(0), run(limit)
    assert ids == whole_ids
    assert whole_bytes > total > peak_bytes
    # In the layout of products experts are held once more, one by one or as far as there is room.
    assert whole_bytes - peak_bytes > total - 2 * limit
