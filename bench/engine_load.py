"""What all arms of the engine benchmark share: requests in, the time of every token out.

An arm is a process that builds one engine, says so in a line of JSON, and then does one job for
every line it reads. Peers run in environments of their own, so this needs the standard library
alone.
"""

import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """One completion, and when it is asked for."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    """All of them are made: nothing ends a completion early but `cancel_after`."""
    temperature: float = 0.0
    at_s: float = 0.0
    """Seconds after the start of the job."""
    after_tokens: int = 0
    """It does not come before all requests together have so many tokens, unless nothing runs."""
    cancel_after: int | None = None
    """Give the request up once it has so many tokens."""


@dataclass(frozen=True)
class Job:
    """Requests in the order in which they come."""

    requests: Sequence[Request]
    clients: int | None = None
    """At most so many run at once: the next one comes when another is done."""

    def to_line(self) -> str:
        """Write the job for the pipe."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> "Job":
        """Read what `to_line` wrote."""
        fields = json.loads(line)
        return cls([Request(**request) for request in fields["requests"]], fields["clients"])


@dataclass(frozen=True)
class Answer:
    """What became of a job; all times are seconds after its start."""

    token_ids: Sequence[Sequence[int]]
    """By request; -1 for those that an engine does not tell."""
    token_s: Sequence[Sequence[float]]
    """By request: when each of its tokens was there."""
    arrival_s: Sequence[float]
    """By request: when it was asked for, which may be before the engine was told."""
    before: dict[str, float]
    after: dict[str, float]
    """Counters of the engine and the memory of its process in bytes."""


class Engine(Protocol):
    """One implementation. Requests are known by their number in the job."""

    @property
    def facts(self) -> dict[str, Any]:
        """What should stand beside the figures, such as versions."""
        ...

    def add(self, number: int, request: Request) -> None:
        """Take one more request; others may be running."""
        ...

    def step(self) -> Iterable[tuple[int, Sequence[int]]]:
        """Work on; return which requests got which new tokens."""
        ...

    def cancel(self, number: int) -> None:
        """Forget a request that is not finished."""
        ...

    def state(self) -> dict[str, float]:
        """Count what the engine holds; raise if something leaked."""
        ...


def drive(engine: Engine, job: Job) -> Answer:
    """Let an engine do a job."""
    before = state(engine)
    waiting = deque(enumerate(job.requests))
    running: set[int] = set()
    token_ids: list[list[int]] = [[] for _ in job.requests]
    token_s: list[list[float]] = [[] for _ in job.requests]
    arrival_s = [0.0] * len(job.requests)
    made = 0
    start = time.perf_counter()
    while waiting or running:
        now = time.perf_counter() - start
        while waiting and _comes(waiting[0][1], now, made, len(running), job.clients):
            number, request = waiting.popleft()
            arrival_s[number] = request.at_s or now
            engine.add(number, request)
            running.add(number)
        if not running:
            time.sleep(max(0.0, waiting[0][1].at_s - now))
            continue
        stepped = engine.step()
        now = time.perf_counter() - start
        for number, ids in stepped:
            if number not in running:  # was cancelled
                continue
            token_ids[number] += ids
            token_s[number] += [now] * len(ids)
            made += len(ids)
            request, done = job.requests[number], len(token_s[number])
            if done >= request.max_new_tokens:
                running.discard(number)
            elif request.cancel_after is not None and done >= request.cancel_after:
                engine.cancel(number)
                running.discard(number)
    return Answer(token_ids, token_s, arrival_s, before, state(engine))


def _comes(request: Request, now: float, made: int, running: int, clients: int | None) -> bool:
    if request.at_s > now or (clients is not None and running >= clients):
        return False
    return made >= request.after_tokens or not running


def state(engine: Engine) -> dict[str, float]:
    """Count what the engine and its process hold."""
    gc.collect()
    counters = dict(engine.state())
    statm = Path("/proc/self/statm")
    if statm.exists():
        counters["rss_bytes"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return counters


def serve(build: Callable[[], Engine]) -> None:
    """Be one arm: build an engine, then do one job for every line read."""
    # What libraries print on their own must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    engine = build()
    facts = {"set_up_s": round(time.perf_counter() - start, 2)} | engine.facts
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        answer = asdict(drive(engine, Job.from_line(line)))
        answer["token_s"] = [[round(t, 6) for t in times] for times in answer["token_s"]]
        print(json.dumps(answer), file=answers, flush=True)
