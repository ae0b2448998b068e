"""`engine/async_engine.py`: streams that end, are left, fail and are drained, beside each other."""

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from tests.mock_engine import POISON, MockRunner, Told, mock_engine, oracle
from ziphius.core.errors import ConfigError, QueueFullError
from ziphius.engine.async_engine import AsyncEngine, EngineDeadError, OutputStream
from ziphius.engine.engine import Engine
from ziphius.engine.sequence import Request
from ziphius.ops.sampling_config import SamplingConfig

SAMPLED = SamplingConfig(seed=3)
ENDLESS = Request([1, 2], 250, 0, SamplingConfig(temperature=0))


def run(test: Callable[[AsyncEngine, Engine], Coroutine], **settings) -> None:
    """Run a test around an engine, which must be empty afterwards."""
    engine = mock_engine(**settings)

    async def main() -> None:
        async with AsyncEngine(engine) as front:
            await test(front, engine)
        assert not front.is_alive

    asyncio.run(asyncio.wait_for(main(), 60))
    engine.check()
    assert not engine.has_work


async def told(stream: OutputStream) -> dict[int, Told]:
    found = {sample: Told([], [], None) for sample in range(stream.request.n)}
    async for output in stream:
        if output.token_id is not None:
            found[output.sample].token_ids.append(output.token_id)
            found[output.sample].logprobs.append(output.logprob)
        found[output.sample] = found[output.sample]._replace(finish_reason=output.finish_reason)
    return found


async def empty(front: AsyncEngine) -> None:
    """Wait until the engine has nothing to do."""
    while await front.call(lambda engine: engine.has_work):
        await asyncio.sleep(0.01)


def test_streams_beside_each_other_are_told_what_each_is_alone():
    requests = [Request([5, 6, 7 + n], 9, n, SAMPLED, n=1 + n % 3) for n in range(12)]
    requests.append(Request([1, POISON, 2], 9, 3, SAMPLED))

    async def test(front: AsyncEngine, engine: Engine) -> None:
        found = await asyncio.gather(*(told(front.generate(request)) for request in requests))
        for request, one in zip(requests, found, strict=True):
            assert one == {sample: oracle(request, sample) for sample in range(request.n)}

    run(test)


def test_a_stream_that_is_left_cancels_its_request():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        async for _ in front.generate(ENDLESS):
            break
        await empty(front)
        task = asyncio.create_task(told(front.generate(ENDLESS)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await empty(front)
        metrics = await front.call(lambda engine: engine.metrics())
        assert metrics["cancelled_in_decode"] + metrics.get("cancelled_in_prefill", 0) == 2
        assert len(oracle(ENDLESS).token_ids) > 50, "it could have ended by itself"

    run(test)


def test_one_sample_can_be_ended_and_says_no_more():
    request = Request([1, 2], 40, 0, SamplingConfig(temperature=0.5), n=3)

    async def test(front: AsyncEngine, engine: Engine) -> None:
        stream = front.generate(request)
        seen = []
        async for output in stream:
            seen.append(output.sample)
            if output.sample == 1:
                stream.end(1)
        assert seen.count(1) == 1
        assert seen.count(0) == len(oracle(request, 0).token_ids)
        await empty(front)

    run(test)


def test_what_cannot_work_is_an_error_of_its_stream_alone():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        other = asyncio.create_task(told(front.generate(Request([1, 2], 20, 0, SAMPLED))))
        with pytest.raises(ConfigError, match="prompt is empty"):
            await told(front.generate(Request([], 1)))
        assert (await other)[0] == oracle(Request([1, 2], 20, 0, SAMPLED))

    run(test)


def test_a_full_queue_refuses():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        streams = [front.generate(ENDLESS) for _ in range(6)]
        results = await asyncio.gather(
            *(asyncio.wait_for(told(stream), 2) for stream in streams), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, QueueFullError)]
        assert refused
        assert len(refused) < 6

    run(test, max_num_seqs=1, max_queue=2)


class Broken(Engine):
    """Its own code fails, not that of a request."""

    def step(self):
        raise ZeroDivisionError("a bug")


def test_an_error_of_the_engine_itself_ends_every_stream():
    async def main() -> None:
        engine = mock_engine()
        engine.__class__ = Broken
        front = AsyncEngine(engine)
        front.start()
        with pytest.raises(EngineDeadError, match="a bug"):
            await told(front.generate(ENDLESS))
        assert not front.is_alive
        with pytest.raises(EngineDeadError, match="a bug"):
            front.generate(ENDLESS)
        assert not await front.drain() or True

    asyncio.run(asyncio.wait_for(main(), 60))


def test_draining_lets_what_runs_end_and_takes_nothing_new():
    request = Request([1, 2], 30, 0, SAMPLED)

    async def main() -> None:
        engine = mock_engine()
        front = AsyncEngine(engine)
        front.start()
        running = asyncio.create_task(told(front.generate(request)))
        await asyncio.sleep(0)
        draining = asyncio.create_task(front.drain())
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="shutting down"):
            front.generate(request)
        assert await draining
        assert (await running)[0] == oracle(request)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_draining_with_a_limit_tells_the_rest():
    async def main() -> None:
        engine = mock_engine()
        held = threading.Event()
        engine.runner = Held(held)
        front = AsyncEngine(engine)
        front.start()
        running = asyncio.create_task(told(front.generate(ENDLESS)))
        await asyncio.sleep(0.05)
        held.set()
        assert not await front.drain(0)
        with pytest.raises(QueueFullError, match="shut down"):
            await running
        assert not engine.has_work

    asyncio.run(asyncio.wait_for(main(), 60))


class Held(MockRunner):
    """Hangs until it is let go."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def __call__(self, batch):
        self.event.wait(30)
        return super().__call__(batch)


def test_the_heart_beats_while_idle_and_stops_when_a_step_hangs():
    async def main() -> None:
        engine = mock_engine()
        held = threading.Event()
        engine.runner = Held(held)
        front = AsyncEngine(engine)
        front.start()
        first = front._beat
        while front._beat == first:
            await asyncio.sleep(0.01)
        task = asyncio.create_task(told(front.generate(Request([1], 1))))
        while not engine.num_running:
            await asyncio.sleep(0.01)
        beat = front._beat
        await asyncio.sleep(0.5)
        assert front._beat == beat
        assert front.heartbeat_age > 0.4
        held.set()
        await task
        assert await front.drain()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_caller_whose_loop_is_gone_harms_nobody_else():
    front = AsyncEngine(mock_engine())
    front.start()
    held, is_inside = threading.Event(), threading.Event()

    def hold(engine: Engine) -> None:
        is_inside.set()
        assert held.wait(30)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(front.call(hold), 0.05)

    async def other() -> None:
        request = Request([1, 2], 20, 0, SAMPLED)
        assert (await told(front.generate(request)))[0] == oracle(request)
        assert await front.drain()

    asyncio.run(impatient())
    assert is_inside.wait(30)
    held.set()
    asyncio.run(asyncio.wait_for(other(), 60))


def test_a_request_that_has_no_stream_harms_nobody():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        await front.call(lambda engine: engine.add(Request([1, 2], 5)))
        request = Request([1, 2], 20, 0, SAMPLED)
        assert (await told(front.generate(request)))[0] == oracle(request)
        await empty(front)

    run(test)


def test_a_reader_hears_of_an_end_from_another_task_while_its_request_waits():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        held = threading.Event()
        engine.runner = Held(held)
        busy = asyncio.create_task(told(front.generate(ENDLESS)))
        stream = front.generate(ENDLESS)
        reader = asyncio.create_task(told(stream))
        while not (engine.num_running and engine.num_waiting):
            await asyncio.sleep(0.001)
        busy.cancel()
        stream.end(0)
        held.set()
        assert (await asyncio.wait_for(reader, 5))[0].token_ids == []

    run(test, max_num_seqs=1)


def test_a_reader_hears_that_a_called_function_cancels():
    async def test(front: AsyncEngine, engine: Engine) -> None:
        reader = asyncio.create_task(told(front.generate(ENDLESS)))
        await asyncio.sleep(0)
        assert await front.call(lambda engine: engine.cancel(0))
        assert (await asyncio.wait_for(reader, 5))[0].finish_reason == "cancelled"
        assert not front._unfinished

    run(test)


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_stream_that_nobody_iterates_over_cancels_its_request(is_closed: bool):
    async def test(front: AsyncEngine, engine: Engine) -> None:
        stream = front.generate(ENDLESS)
        if is_closed:
            stream.close()
            assert not [output async for output in stream]
        del stream
        await empty(front)
        metrics = await front.call(lambda engine: engine.metrics())
        assert sum(metrics[name] for name in metrics if name.startswith("cancelled_in_")) == 1

    run(test)


def test_an_engine_that_was_not_started_says_so():
    async def main() -> None:
        front = AsyncEngine(mock_engine())
        with pytest.raises(RuntimeError, match="not started: call start"):
            front.generate(ENDLESS)
        with pytest.raises(RuntimeError, match="not started: call start"):
            await front.call(lambda engine: engine.has_work)

    asyncio.run(main())
