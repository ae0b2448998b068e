"""Training speed against the named peers: `make bench-train`.

Every arm lives in its own process. All are built and warmed first, then take turns of a few steps
each for several rounds, so that a slow minute of the machine hits all alike; figures are medians
over all timed steps, and ratios. Run nothing else meanwhile.

    python bench/train.py [--nanochat CHECKOUT] [--rounds 7] [--out bench/results/train.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import arms
import machine
import moe_layer
import torch

STEPS_PER_TURN = 3
WARMUP_STEPS = 5
# Large temporaries are otherwise mapped and unmapped at every step, in all arms alike.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "8589934592"}

ARMS: dict[str, Callable[[], arms.Arm]] = {
    "ziphius fp32": partial(arms.ziphius, "float32"),
    "ziphius bf16": partial(arms.ziphius, "bfloat16"),
    "transformers fp32 stock": partial(arms.transformers, "float32", compiled=False),
    "transformers fp32 compiled": partial(arms.transformers, "float32", compiled=True),
    "transformers bf16 stock": partial(arms.transformers, "bfloat16", compiled=False),
    "transformers bf16 eager experts": partial(
        arms.transformers, "bfloat16", compiled=False, experts="eager"
    ),
    "transformers bf16 compiled": partial(arms.transformers, "bfloat16", compiled=True),
    "nanochat bf16 compiled": partial(arms.nanochat, "bfloat16"),
    "expert layer: ziphius bf16": partial(moe_layer.ziphius, "bfloat16"),
    "expert layer: transformers bf16 eager": partial(moe_layer.transformers, "bfloat16", "eager"),
    "expert layer: transformers bf16 grouped": partial(
        moe_layer.transformers, "bfloat16", "grouped_mm"
    ),
}
RATIOS = {
    "bf16 over transformers stock": ("ziphius bf16", "transformers bf16 stock"),
    "bf16 over transformers compiled": ("ziphius bf16", "transformers bf16 compiled"),
    "fp32 over transformers stock": ("ziphius fp32", "transformers fp32 stock"),
    "fp32 over transformers compiled": ("ziphius fp32", "transformers fp32 compiled"),
    "bf16 over nanochat compiled, per FLOP": ("ziphius bf16", "nanochat bf16 compiled"),
    "expert layer over transformers' faster": (
        "expert layer: ziphius bf16",
        "expert layer: transformers bf16 grouped",
    ),
    "expert layer over transformers eager": (
        "expert layer: ziphius bf16",
        "expert layer: transformers bf16 eager",
    ),
}


def serve(name: str) -> None:
    """Be one arm: build, warm up, then time a turn for every line read."""
    start = time.perf_counter()
    arm = ARMS[name]()
    for _ in range(WARMUP_STEPS):
        loss = arm.step()
    built = time.perf_counter() - start
    print(json.dumps({"gflop": arm.gflop, "set_up_s": built, "loss": loss}), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(STEPS_PER_TURN):
            start = time.perf_counter()
            arm.step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Process:
    """An arm at the other end of a pipe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.times: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--arm", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ALLOCATOR,
        )
        self.facts = self._read()

    def turn(self) -> None:
        """Let the arm run its steps while all others wait."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.times += self._read()

    def row(self) -> dict[str, object]:
        """Summarise the arm."""
        median = statistics.median(self.times)
        return self.facts | {
            "ms": round(1e3 * median, 2),
            "ms_spread": [round(1e3 * t, 2) for t in (min(self.times), max(self.times))],
            "tokens_per_s": round(arms.BATCH * arms.CONTEXT / median),
            "gflop_per_s": round(self.facts["gflop"] / median, 1),
        }

    def _read(self) -> object:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise SystemExit(f"the arm '{self.name}' ended early; its error stands above")


def main() -> None:
    """Run the benchmark, or one arm of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench/results/train.json"))
    parser.add_argument("--only", help="run only the arms whose name contains this")
    options = parser.parse_args()
    if options.arm:
        serve(options.arm)
        return
    if options.nanochat:
        os.environ["NANOCHAT"] = str(options.nanochat.resolve())
    names = [name for name in ARMS if options.nanochat or "nanochat" not in name]
    names = [name for name in names if not options.only or options.only in name]
    processes = []
    for name in names:
        processes.append(Process(name))
        print(f"ready: {name} ({processes[-1].facts['set_up_s']:.0f} s)", flush=True)
    for turn in range(options.rounds):
        for process in processes:
            process.turn()
        print(f"round {turn + 1} of {options.rounds}", flush=True)
    rows = {process.name: process.row() for process in processes}
    result = {
        "machine": machine.describe() | {"peak_gflop_per_s": machine.matrix_peaks()},
        "shape": {"preset": "bench-v3", "batch": arms.BATCH, "context": arms.CONTEXT},
        "rounds": options.rounds,
        "steps_per_turn": STEPS_PER_TURN,
        "arms": rows,
        "ratios": ratios(rows),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:42} {row['ms']:9} ms {row['tokens_per_s']:9} tok/s {row['gflop_per_s']:7}")
    print(json.dumps(result["ratios"], indent=1))


def ratios(rows: dict[str, dict[str, object]]) -> dict[str, float]:
    """Divide our speed by each peer's, in FLOPs, which for equal shapes is in tokens."""
    return {
        name: round(rows[ours]["gflop_per_s"] / rows[theirs]["gflop_per_s"], 3)
        for name, (ours, theirs) in RATIOS.items()
        if ours in rows and theirs in rows
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
