"""An engine for many askers at once: streams of outputs, fed by a thread that steps.

The thread alone touches the engine. Askers hand it what to do through a queue, and hear of every
step through the event loop they ask from. A stream that is left, by `break` or a cancelled task,
closed or forgotten, cancels its request. The heart beats while the thread is alive and goes on:
`heartbeat_age` grows without end when a step hangs.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ziphius.core.errors import QueueFullError
from ziphius.engine.engine import Engine
from ziphius.engine.sequence import FinishReason, Request, StepOutput

T = TypeVar("T")

_IDLE_BEAT = 0.2
"""Seconds after which an idle thread looks around, to beat."""


class EngineDeadError(RuntimeError):
    """The thread that steps has ended by an error of the engine itself: nothing runs any more."""


class OutputStream:
    """The outputs of one request, as they come: iterate over it once.

    Leaving the iteration early cancels the request; so does dropping the last reference.
    """

    def __init__(self, engine: "AsyncEngine", request: Request) -> None:
        self._open: set[int] = set()
        self.request = request
        self._engine = engine
        self._arrived: asyncio.Queue[list[StepOutput] | Exception] = asyncio.Queue()
        self.feed = Feed(asyncio.get_running_loop(), self._arrived)
        self._open.update(range(request.n))

    async def __aiter__(self) -> AsyncIterator[StepOutput]:
        """Yield the outputs of all samples that were not ended.

        Raises:
            ConfigError: the request can never work.
            QueueFullError: too many wait already, or the engine was shut down.
            EngineDeadError: the thread has ended.
        """
        try:
            while self._open:
                item = await self._arrived.get()
                if isinstance(item, Exception):
                    self._open.clear()
                    raise item
                for output in item:
                    if output.sample in self._open:
                        if output.finish_reason is not None:
                            self._open.remove(output.sample)
                        yield output
        finally:
            self.close()

    def end(self, sample: int = 0) -> None:
        """End one sample, as when a stop string shows up in its text; no output of it follows."""
        if sample in self._open:
            self._end(sample, "stop")

    def close(self) -> None:
        """Cancel what is not finished; whoever iterates hears no more."""
        for sample in list(self._open):
            self._end(sample, "cancelled")

    def __del__(self) -> None:
        """Cancel: nobody will hear what follows."""
        self.close()

    def _end(self, sample: int, reason: FinishReason) -> None:
        self._open.remove(sample)
        self._engine.end(self.feed, sample, reason)


class Feed:
    """Where the thread puts what is for one stream, which it must not keep alive."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arrived: asyncio.Queue[list[StepOutput] | Exception],
    ) -> None:
        self._loop = loop
        self._arrived = arrived

    def put(self, item: list[StepOutput] | Exception) -> None:
        """Hand something over from the thread; to an asker whose loop is gone, nothing."""
        _hand_over(self._loop, self._arrived, item)


def _hand_over(loop: asyncio.AbstractEventLoop, arrived: asyncio.Queue[T], item: T) -> None:
    """Put something into a queue of another thread's loop; where the loop is gone, nothing."""
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(arrived.put_nowait, item)


class AsyncEngine:
    """Runs an engine in a thread of its own, from `start` until `drain`.

    Example:
        async with AsyncEngine(engine) as engine:
            async for output in engine.generate(Request(prompt_ids, max_new_tokens=20)):
                ...

    Args:
        engine: from `start` on nobody else's.
        clock: seconds, rising.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # A stream that is collected while its own thread holds it asks for it again.
        self._lock = threading.RLock()
        self._unfinished = 0
        self._feeds: dict[int, Feed] = {}
        self._numbers: dict[Feed, int] = {}
        self._open: dict[int, set[int]] = {}
        self._beat = clock()
        self._is_draining = False
        self._stop = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ziphius-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def __aenter__(self) -> "AsyncEngine":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last ended a step, or found nothing to do."""
        return self._clock() - self._beat

    @property
    def is_alive(self) -> bool:
        """The thread runs, which is not to say that it does not hang."""
        return self._error is None and self._thread.is_alive()

    def generate(self, request: Request) -> OutputStream:
        """Start a request; iterate over what is returned to hear of it.

        Raises:
            QueueFullError: the engine is being shut down.
            EngineDeadError: the thread has ended.
            RuntimeError: it was not started.
        """
        if self._is_draining:
            raise QueueFullError("the engine is shutting down and takes no more requests")
        self._check_alive()
        stream = OutputStream(self, request)
        feed = stream.feed
        self._do(lambda: self._begin(feed, request))
        self._count(1)
        return stream

    def end(self, feed: Feed, sample: int, reason: FinishReason) -> None:
        """End one sample of a stream (`OutputStream.end`)."""
        with suppress(EngineDeadError):
            self._do(lambda: self._end(feed, sample, reason))

    async def call(self, function: Callable[[Engine], Any]) -> Any:
        """Run a function of the engine between two steps, in its thread, and return its result."""
        loop, done = asyncio.get_running_loop(), asyncio.Queue[tuple[Any, Exception | None]](1)

        def run() -> None:
            result: tuple[Any, Exception | None]
            try:
                result = function(self._engine), None
            except Exception as error:
                result = None, error
            _hand_over(loop, done, result)

        self._do(run)
        result, error = await done.get()
        if error is not None:
            raise error
        return result

    async def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, let what runs end, and stop the thread.

        Args:
            timeout: seconds to wait before the rest is cancelled; None waits without end.

        Returns:
            Whether everything ended by itself.
        """
        self._is_draining = True
        until = None if timeout is None else self._clock() + timeout
        while self._unfinished and self.is_alive and (until is None or self._clock() < until):
            await asyncio.sleep(0.01)
        ended = not self._unfinished
        self._stop = True
        with suppress(EngineDeadError):
            self._do(lambda: None)  # wakes it
        await asyncio.to_thread(self._thread.join)
        return ended

    def _do(self, command: Callable[[], None]) -> None:
        """Let the thread run something between two steps."""
        with self._lock:
            self._check_alive()
            self._commands.put(command)

    def _check_alive(self) -> None:
        if self._thread.ident is None:
            raise RuntimeError("the engine was not started: call start(), or use `async with`")
        if not self.is_alive:
            raise EngineDeadError(f"the engine has stopped: {self._error}") from self._error

    def _run(self) -> None:
        """Step until told to stop; an error of the engine itself ends every stream."""
        reason: Exception = QueueFullError("the engine was shut down")
        self._engine.on_end = lambda output: self._hand_out([output])
        try:
            while not self._stop:
                self._obey(wait=not self._engine.has_work)
                if self._engine.has_work and not self._stop:
                    self._hand_out(self._engine.step())
                self._beat = self._clock()
            self._engine.on_end = None  # of what is left, streams hear `reason`
            self._engine.close()
        except Exception as error:
            reason = EngineDeadError(f"the engine has stopped: {error}")
            reason.__cause__ = error
        with self._lock:
            self._error = reason
        self._obey(wait=False)
        for feed in self._feeds.values():
            feed.put(reason)
        self._feeds.clear()

    def _obey(self, *, wait: bool) -> None:
        """Do all that askers want; wait a moment for the first of it where there is no step."""
        with suppress(queue.Empty):
            if wait:
                self._commands.get(timeout=_IDLE_BEAT)()
            while True:
                self._commands.get_nowait()()

    def _begin(self, feed: Feed, request: Request) -> None:
        try:
            if self._error is not None:
                raise self._error
            request_id = self._engine.add(request)
        except Exception as error:
            feed.put(error)
            self._count(-1)
            return
        self._feeds[request_id] = feed
        self._numbers[feed] = request_id
        self._open[request_id] = set(range(request.n))

    def _end(self, feed: Feed, sample: int, reason: FinishReason) -> None:
        request_id = self._numbers.get(feed)
        if request_id is not None and self._error is None:
            self._engine.end(request_id, sample, reason)

    def _hand_out(self, outputs: list[StepOutput]) -> None:
        """Give each stream what a step made for it, in one piece."""
        parts: dict[int, list[StepOutput]] = {}
        for output in outputs:
            parts.setdefault(output.request_id, []).append(output)
        for request_id, part in parts.items():
            if request_id not in self._feeds:
                continue  # a called function has added it
            self._feeds[request_id].put(part)
            self._close(request_id, {one.sample for one in part if one.finish_reason is not None})

    def _close(self, request_id: int, samples: set[int]) -> None:
        """Forget samples that have ended, and with the last one their stream."""
        self._open[request_id] -= samples
        if not self._open[request_id]:
            del self._open[request_id], self._numbers[self._feeds.pop(request_id)]
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._unfinished += change
