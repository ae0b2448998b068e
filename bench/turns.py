"""Arms in processes of their own that take turns: what every comparison with peers runs on.

All are built and warmed first, then take turns of a few steps each for several rounds, so that a
slow minute of the machine hits all alike.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

# Large temporaries are otherwise mapped and unmapped at every step, in all arms alike.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


class Arm(Protocol):
    """One implementation, ready to step."""

    @property
    def step(self) -> Callable[[], float]:
        """Train on one batch; return the loss."""
        ...

    @property
    def gflop(self) -> float:
        """Matrix FLOPs of a step."""
        ...


def serve(build: Callable[[], Arm], *, warmup: int, steps: int) -> None:
    """Be one arm: build it, warm it up, then time a turn of steps for every line read."""
    start = time.perf_counter()
    arm = build()
    for _ in range(warmup):
        loss = arm.step()
    built = time.perf_counter() - start
    print(json.dumps({"gflop": arm.gflop, "set_up_s": built, "loss": loss}), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            arm.step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Process:
    """An arm at the other end of a pipe."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.times: list[float] = []
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ALLOCATOR,
        )
        self.facts: dict[str, Any] = self._read()

    def turn(self) -> None:
        """Let the arm run its steps while all others wait."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.times += self._read()

    def row(self, tokens: int) -> dict[str, Any]:
        """Summarise the arm, whose steps have so many tokens."""
        median = statistics.median(self.times)
        return self.facts | {
            "ms": round(1e3 * median, 2),
            "ms_spread": [round(1e3 * t, 2) for t in (min(self.times), max(self.times))],
            "tokens_per_s": round(tokens / median),
            "gflop_per_s": round(self.facts["gflop"] / median, 1),
        }

    def _read(self) -> Any:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise SystemExit(f"the arm '{self.name}' ended early; its error stands above")


def take_turns(processes: Sequence[Process], rounds: int) -> None:
    """Run the rounds, and say how far they are."""
    for turn in range(rounds):
        for process in processes:
            process.turn()
        print(f"round {turn + 1} of {rounds}", flush=True)
