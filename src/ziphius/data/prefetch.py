"""Read ahead with threads. The batches are the same, only sooner: loaders are pure functions."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from ziphius.core.closing import Closing
from ziphius.data.batch import Batch
from ziphius.data.loader import Loader

Place = tuple[int, int, int, int]


class Prefetcher(Closing):
    """A loader that has the next batches ready.

    Batches are expected in the order of training; any other order is right too, and waits.

    Args:
        loader: does the work; its `batch` must be safe to call from several threads.
        workers: threads that read; with 0 every batch is read when it is asked for.
        ahead: batches that are read or being read in advance.
    """

    def __init__(self, loader: Loader, *, workers: int, ahead: int = 4) -> None:
        self._loader, self._ahead = loader, ahead
        self._pool = ThreadPoolExecutor(workers, "ziphius-data") if workers else None
        self._waiting: dict[Place, Future[Batch]] = {}

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Return a batch and start on those that follow it."""
        if self._pool is None:
            return self._loader.batch(step, micro, rank, world_size)
        place = (step, micro, rank, world_size)
        future = self._waiting.pop(place, None)
        following = list(islice(self._following(place), self._ahead))
        for other in [other for other in self._waiting if other not in following]:
            self._waiting.pop(other).cancel()
        for other in following:
            if other not in self._waiting:
                self._waiting[other] = self._pool.submit(self._loader.batch, *other)
        return self._loader.batch(*place) if future is None else future.result()

    def micros(self, step: int, world_size: int) -> int:
        """Count the micro-batches of each rank in a step."""
        return self._loader.micros(step, world_size)

    def tokens_per_step(self, step: int) -> int:
        """Count the tokens of a step, over all ranks."""
        return self._loader.tokens_per_step(step)

    def close(self) -> None:
        """Stop the threads; batches that are being read are waited for and dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._waiting.clear()

    def _following(self, place: Place) -> Iterator[Place]:
        step, micro, rank, world_size = place
        while True:
            micro += 1
            if micro >= self._loader.micros(step, world_size):
                step, micro = step + 1, 0
            yield step, micro, rank, world_size
