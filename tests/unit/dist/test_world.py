from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ziphius.core.errors import ConfigError
from ziphius.dist.world import ALONE, VARIABLES, World, join_world, local_device

CPU = torch.device("cpu")


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_alone_nothing_is_sent() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum_(tensor) is tensor
    assert ALONE.max_(tensor) is tensor
    ALONE.sum_flat_([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.sum_numbers({"b": 1.0, "a": 2.5}, CPU) == {"b": 1.0, "a": 2.5}
    assert ALONE.of_first(3.0, CPU) == 3.0
    assert ALONE.is_first
    assert not World(1, 2).is_first


@pytest.mark.usefixtures("no_torchrun")
def test_without_torchrun_a_run_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with join_world(CPU) as world:
        assert world == ALONE
    for name, value in zip(VARIABLES, ("0", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with join_world(CPU) as world:
        assert world == ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.usefixtures("no_torchrun")
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="WORLD_SIZE, LOCAL_RANK: not set"), join_world(CPU):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="WORLD_SIZE = 'two'"), join_world(CPU):
        pass


@pytest.mark.usefixtures("no_torchrun")
def test_accelerators_are_shared_out_and_the_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert local_device(cuda) == cuda
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(cuda) == torch.device("cuda", 3)
    assert local_device(CPU) == CPU


def test_two_ranks_add_up(tmp_path: Path) -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "meet"), results), nprocs=2)
    first, second = (results.get() for _ in range(2))
    assert first == second
    assert first == {
        "sum": [11.0, 22.0],
        "max": [10.0, 20.0],
        "flat": [[[1.0, 2.0], [3.0, 4.0]], [30, 40]],
        "numbers": {"a": 1.0, "b": 2.0},
        "first": 7.0,
    }


def _one_of_two(rank: int, meeting: str, results) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{meeting}", timedelta(seconds=60), world_size=2, rank=rank
    )
    world = World(rank, 2, rank)
    scale = [1.0, 10.0][rank]
    # Floats that lie in memory by columns, then integers: two buckets.
    flat = [
        (1 - rank) * torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t(),
        torch.tensor([[10, 15], [20, 25]][rank]),
    ]
    world.sum_flat_(flat)
    results.put(
        {
            "sum": world.sum_(torch.tensor([1.0, 2.0]) * scale).tolist(),
            "max": world.max_(torch.tensor([1.0, 2.0]) * scale).tolist(),
            "flat": [tensor.tolist() for tensor in flat],
            "numbers": world.sum_numbers({"b": 1.0, "a": float(rank)}, CPU),
            "first": world.of_first(7.0 + rank, CPU),
        }
    )
    torch.distributed.destroy_process_group()
