import threading
import time

import pytest
import torch

from ziphius.data.batch import Batch
from ziphius.data.prefetch import Place, Prefetcher


class Slow:
    """A loader whose batch says its own place, and which remembers who asked."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.threads: set[str] = set()

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        self.places.append((step, micro, rank, world_size))
        self.threads.add(threading.current_thread().name)
        time.sleep(0.001)
        ids_BT = torch.tensor([[step, micro, rank, world_size]])
        return Batch(ids_BT, torch.zeros_like(ids_BT))

    def micros(self, step: int, world_size: int) -> int:
        return 1 + step % 3

    def tokens_per_step(self, step: int) -> int:
        return 4 * step


def run(workers: int, steps: range) -> tuple[list[list[int]], Slow]:
    slow = Slow()
    with Prefetcher(slow, workers=workers, ahead=3) as loader:
        found = [
            loader.batch(step, micro, 1, 2).ids_BT.tolist()[0]
            for step in steps
            for micro in range(loader.micros(step, 2))
        ]
    return found, slow


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    found, slow = run(workers, range(5, 12))
    assert found == [[step, micro, 1, 2] for step in range(5, 12) for micro in range(1 + step % 3)]
    assert len(slow.threads) <= 1 + workers


def test_batches_are_read_ahead_and_once() -> None:
    found, slow = run(2, range(6))
    assert len(set(slow.places)) == len(slow.places)
    assert len(found) <= len(slow.places) <= len(found) + 3
    slow = Slow()
    with Prefetcher(slow, workers=2, ahead=3) as loader:
        loader.batch(0, 0, 1, 2)
        until = time.monotonic() + 10.0
        while len(slow.places) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(slow.places) > 1
    assert any(name.startswith("ziphius-data") for name in slow.threads)


def test_without_workers_nothing_is_read_ahead() -> None:
    found, slow = run(0, range(6))
    assert len(slow.places) == len(found)


def test_a_jump_is_right_too() -> None:
    with Prefetcher(Slow(), workers=1) as loader:
        for step in (0, 40, 3, 3, 41):
            assert loader.batch(step, 0, 0, 1).ids_BT.tolist() == [[step, 0, 0, 1]]
        assert loader.tokens_per_step(5) == 20


def test_an_error_reaches_the_one_who_asked() -> None:
    class Broken(Slow):
        def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
            if step == 1:
                raise ValueError("broken row")
            return super().batch(step, micro, rank, world_size)

    with Prefetcher(Broken(), workers=1) as loader:
        loader.batch(0, 0, 0, 1)
        with pytest.raises(ValueError, match="broken row"):
            loader.batch(1, 0, 0, 1)
