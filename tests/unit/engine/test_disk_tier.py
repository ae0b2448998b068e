"""Blocks in a folder: found again after an eviction and a restart, and never wrong."""

import errno
import multiprocessing
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.mock_engine import Log, mock_engine, oracle
from tests.tiny import V3_EXPERTS, build, latent_config
from ziphius.core.errors import ConfigError, OutputError
from ziphius.engine import disk_tier
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.disk_tier import DiskTier, cache_fingerprint
from ziphius.engine.engine import Engine
from ziphius.engine.sequence import Request
from ziphius.models.cache import CacheSpec, PagedCache
from ziphius.ops.native import build as native_build
from ziphius.ops.sampling_config import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
PROMPTS = [[number] * 4 + list(range(20)) + [number] for number in range(6)]
BIG = 10**9


def disk_engine(folder: Path, max_bytes: int = BIG, model: str = "m", **settings) -> Engine:
    engine = mock_engine(**({"num_blocks": 12} | settings))
    engine.keep_on_disk(folder, max_bytes, model=model, runner="mock")
    return engine


def told(engine: Engine, requests: list[Request]) -> list:
    """Run requests one after the other and compare what they are told to the oracle."""
    results = []
    for request in requests:
        log = Log(engine)
        number = engine.add(request)
        log.run()
        assert log.told[number, 0] == oracle(request)
        results.append(log.told[number, 0])
    return results


def requests(**changes) -> list[Request]:
    return [Request(prompt, 5, 0, GREEDY, **changes) for prompt in PROMPTS]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.block"))


def test_blocks_are_found_after_an_eviction(tmp_path):
    engine = disk_engine(tmp_path / "tier")
    told(engine, requests())
    engine._tier.flush()
    before = len(engine.runner.calls)
    told(engine, requests())
    figures = engine.metrics()
    assert figures["disk_cache_loaded_blocks"] >= 5 * 5
    # Of 25 tokens 24 are known; then 5 are drawn.
    assert engine.runner.calls[before : before + 5] == [[1]] * 5
    assert figures["disk_cache_damaged_blocks"] == figures["disk_cache_dropped_blocks"] == 0
    engine.close()


def test_blocks_are_found_after_a_restart(tmp_path):
    engine = disk_engine(tmp_path / "tier", num_blocks=64)
    told(engine, requests())
    assert not files(tmp_path)
    engine.close()
    again = disk_engine(tmp_path / "tier", num_blocks=64)
    told(again, requests())
    assert again.runner.calls[0] == [1]
    assert again.metrics()["disk_cache_loaded_blocks"] == 6 * 6
    again.close()
    assert again.metrics()["disk_cache_bytes"] > 0


@pytest.mark.parametrize(
    "changed",
    [{"model": "other"}, {"block_size": 2}, {"salt": "tenant"}],
    ids=["model", "block size", "salt"],
)
def test_what_another_model_layout_or_tenant_left_is_not_found(tmp_path, changed):
    engine = disk_engine(tmp_path)
    told(engine, requests())
    engine.close()
    salt = changed.pop("salt", "")
    other = disk_engine(tmp_path, num_blocks=64, **changed)
    told(other, requests(cache_salt=salt)[:1])
    assert other.metrics()["disk_cache_loaded_blocks"] == 0
    other.close()


def test_what_other_kernels_left_is_not_found(tmp_path, monkeypatch):
    engine = disk_engine(tmp_path)
    told(engine, requests())
    engine.close()
    with monkeypatch.context() as patch:
        patch.setattr(native_build, "digest", lambda: "of another machine")
        other = disk_engine(tmp_path, num_blocks=64)
        told(other, requests()[:1])
        assert other.metrics()["disk_cache_loaded_blocks"] == 0
        other.close()
    again = disk_engine(tmp_path, num_blocks=64)
    told(again, requests()[:1])
    assert again.metrics()["disk_cache_loaded_blocks"] > 0
    again.close()


def test_nothing_is_found_after_a_change_of_weights(tmp_path):
    engine = disk_engine(tmp_path, num_blocks=64)
    told(engine, requests())
    engine.reset_prefix_cache()
    told(engine, requests()[:1])
    assert engine.metrics()["disk_cache_loaded_blocks"] == 0
    engine.close()
    again = disk_engine(tmp_path)
    told(again, requests()[:1])
    assert again.metrics()["disk_cache_loaded_blocks"] == 0
    again.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    other = next(other for other in files(path.parent.parent) if other != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut, flip, lengthen, empty, swap])
def test_a_damaged_block_is_refused_counted_and_deleted(tmp_path, damage):
    request = Request(PROMPTS[0], 1, 0, GREEDY)
    engine = disk_engine(tmp_path)
    told(engine, [request])
    engine.close()
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    assert len(whole) == 6
    for path in whole:
        damage(path)
        again = disk_engine(tmp_path)
        told(again, [request])
        assert again.metrics()["disk_cache_damaged_blocks"] == 1
        again.close()
        for other, content in whole.items():
            assert other.read_bytes() == content, "written anew, and no other touched"


def test_the_size_is_kept_and_what_is_longest_out_of_use_goes_first(tmp_path):
    cache = PagedCache([CacheSpec((3, 5)), CacheSpec((2,))], 40, 4, dtype=torch.bfloat16)
    for parts in cache.parts:
        for part in parts:
            part.copy_(torch.arange(part.numel()).view_as(part) % 97)
    tier = DiskTier(tmp_path, cache, b"f", 8 * 160)
    size = tier._file_bytes
    assert size == 16 + 64 + 4 * 10 * 2
    for block in range(40):
        tier.store(block, bytes([block]))
        tier.flush()
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 8 * 160
        tier.load([b"\0"], [39])  # in use
    assert tier.metrics()["disk_cache_deleted_blocks"] >= 32
    for block, found in ((0, 1), (39, 1), (38, 1), (20, 0)):
        assert tier.load([bytes([block])], [5]) == found
        if found:
            for parts in cache.parts:
                for part in parts:
                    assert torch.equal(part[20:24], part[4 * block :][:4]) or block == 39
    tier.close()
    reopened = DiskTier(tmp_path, cache, b"f", 2 * 160)
    assert len(files(tmp_path)) <= 2
    reopened.close()


def test_blocks_wait_for_the_thread_only_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_tier, "BACKLOG_BYTES", 2 * 96)
    engine = disk_engine(tmp_path)
    tier = engine._tier
    with tier._lock:
        tier._pending[tmp_path / "held"] = tier._pending[tmp_path / "too"] = b""
    told(engine, requests())
    assert engine.metrics()["disk_cache_dropped_blocks"] > 0
    assert not files(tmp_path)
    tier._pending.clear()
    told(engine, requests())
    engine.close()


def test_a_block_can_be_found_before_it_is_written(tmp_path):
    engine = disk_engine(tmp_path)
    tier = engine._tier
    held = tier._queue
    tier._queue = type(held)()  # nobody takes from it
    told(engine, requests())
    told(engine, requests())
    assert engine.metrics()["disk_cache_loaded_blocks"] > 0
    assert not files(tmp_path)
    held.put(None)
    tier._thread.join()


def test_a_disk_that_cannot_be_written_stops_no_request(tmp_path, caplog):
    engine = disk_engine(tmp_path)
    for number in range(256):
        (tmp_path / f"{number:02x}").rmdir()
    told(engine, requests())
    told(engine, requests())
    engine._tier.flush()
    assert engine.metrics()["disk_cache_failures"] > 1
    assert caplog.text.count("goes on without") == 1
    engine.close()


def test_on_a_full_disk_new_blocks_take_the_place_of_old_ones(tmp_path, monkeypatch):
    cache = PagedCache([CacheSpec((6,))], 40, 2)
    tier = DiskTier(tmp_path, cache, b"", BIG)
    write, room = disk_tier.write_file, 16

    def write_where_there_is_room(path: Path, content: bytes, *, durable: bool) -> None:
        if len(files(tmp_path)) >= room:
            full = OSError(errno.ENOSPC, "No space left on device")
            raise OutputError("Cannot write.") from full
        write(path, content, durable=durable)

    monkeypatch.setattr(disk_tier, "write_file", write_where_there_is_room)
    for number in range(20):
        tier.store(0, bytes([number]))
        tier.flush()
        time.sleep(0.002)
    assert tier.failed == 0
    assert tier.metrics()["disk_cache_bytes"] == sum(f.stat().st_size for f in files(tmp_path))
    found = [number for number in range(20) if tier.load([bytes([number])], [1])]
    assert found == list(range(4, 20))
    room = 0  # another program takes all
    for number in range(20, 40):
        tier.store(0, bytes([number]))
        tier.flush()
    assert not files(tmp_path)
    assert tier.failed == 20
    tier.close()


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a block of the cache has 96"):
        disk_engine(tmp_path, max_bytes=95)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="disk_cache"):
        disk_engine(tmp_path / "file")


def run_beside(folder: str, seed: int) -> None:
    engine = disk_engine(Path(folder), 96 * 30)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        which = int(torch.randint(len(PROMPTS), (), generator=generator))
        length = int(torch.randint(5, 25, (), generator=generator))
        told(engine, [Request(PROMPTS[which][:length], 3, 0, GREEDY)])
    figures = engine.metrics()
    assert figures["disk_cache_damaged_blocks"] == figures["disk_cache_failures"] == 0
    assert figures["disk_cache_loaded_blocks"] > 0
    engine.close()


def test_processes_that_share_a_folder_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run_beside, args=(str(tmp_path), n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 96 * 30 * 18 // 16


def large_tier(folder: Path) -> tuple[PagedCache, DiskTier]:
    """Blocks of 160 kB, 20 of which are allowed."""
    cache = PagedCache([CacheSpec((10_000,))], 30, 4)
    return cache, DiskTier(folder, cache, b"same", 20 * 161_000)


def die_in_a_write(folder: str, seed: int) -> None:
    cache, tier = large_tier(Path(folder))
    generator = torch.Generator().manual_seed(seed)
    for count in range(10_000):
        if count == 25:
            tier.flush()
            # From here on the system kills whoever writes more than half of a block.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
        number = int(torch.randint(30, (), generator=generator))
        cache.parts[0][0][4 * number : 4 * number + 4] = number + 0.5
        tier.store(number, bytes([number]), wait=True)


def test_processes_that_die_while_they_write_leave_whole_blocks_alone(tmp_path):
    context = multiprocessing.get_context("fork")
    for seed in (0, 2):
        workers = [
            context.Process(target=die_in_a_write, args=(str(tmp_path), seed + number))
            for number in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == -signal.SIGXFSZ
    assert list(tmp_path.glob("*/.*.tmp"))
    cache, tier = large_tier(tmp_path)
    assert not list(tmp_path.glob("*/.*"))
    for block in range(30):
        if tier.load([bytes([block])], [block]):
            assert (cache.parts[0][0][4 * block : 4 * block + 4] == block + 0.5).all()
    assert tier.loaded >= 14
    assert tier.damaged == tier.failed == 0
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 20 * 161_000
    tier.close()


def test_the_fingerprint_knows_the_numbers_of_the_cache():
    caches = [
        PagedCache([CacheSpec((3,))], 4, 4),
        PagedCache([CacheSpec((3,))], 4, 2),
        PagedCache([CacheSpec((3,))], 4, 4, dtype=torch.bfloat16),
        PagedCache([CacheSpec((3,))], 4, 4, dtype=torch.int8),
        PagedCache([CacheSpec((3,))], 4, 4, dtype=torch.float8_e4m3fn),
        PagedCache([CacheSpec((3,), kept=1)], 4, 4, dtype=torch.int8),
        PagedCache([CacheSpec((1, 2))], 4, 4),
        PagedCache([CacheSpec((3,))] * 2, 4, 4),
    ]
    found = {cache_fingerprint("m", "torch", cache) for cache in caches}
    found |= {cache_fingerprint(*names, caches[0]) for names in (("n", "torch"), ("m", "native"))}
    assert len(found) == len(caches) + 2
    assert cache_fingerprint("m", "torch", PagedCache([CacheSpec((3,))], 9, 4)) in found


def model_told(folder: Path | None, requests: list[Request], num_blocks: int = 12):
    """Run a small model; return ids and log-probabilities, and the engine's figures."""
    settings = {"num_blocks": num_blocks, "block_size": 4, "max_num_seqs": 2}
    disk = {} if folder is None else {"disk_cache": folder}
    model = build(latent_config(**V3_EXPERTS)).eval()
    engine = build_engine(model, EngineConfig(**settings, **disk))
    ids, logprobs = [], []
    for request in requests:
        engine.add(request)
        while engine.has_work:
            for output in engine.step():
                assert output.error is None
                ids.append(output.token_id)
                logprobs.append(output.logprob)
            engine.check()
    figures = engine.metrics()
    engine.close()
    return ids, torch.tensor(logprobs), figures


def test_a_model_draws_the_same_with_it_without_it_and_after_a_restart(tmp_path):
    asked = requests() + requests()
    ids, logprobs, _ = model_told(None, asked, num_blocks=200)
    for _ in range(2):  # the second one finds what the first one left
        found_ids, found_logprobs, figures = model_told(tmp_path, asked)
        assert found_ids == ids
        torch.testing.assert_close(found_logprobs, logprobs, rtol=1e-5, atol=1e-5)
        assert figures["disk_cache_loaded_blocks"] > 30
    assert figures["disk_cache_stored_blocks"] <= 1
    other = model_told(tmp_path, [replace(asked[0], cache_salt="other")])
    assert other[2]["disk_cache_loaded_blocks"] == 0


def test_settings_without_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prefix_caching"):
        EngineConfig(disk_cache=tmp_path, prefix_caching=False)
    with pytest.raises(ValueError, match="without disk_cache"):
        EngineConfig(disk_cache_bytes=10**9)
    model = build(latent_config())
    with pytest.raises(ConfigError, match="routes"):
        build_engine(model, EngineConfig(disk_cache=tmp_path), record_routes=True)
