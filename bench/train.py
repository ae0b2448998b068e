"""Training speed against the named peers: `make bench-train`.

Every arm lives in its own process and takes turns with the others (`turns.py`); figures are medians
over all timed steps, and ratios. Run nothing else meanwhile.

    python bench/train.py [--nanochat CHECKOUT] [--rounds 7] [--out bench/results/train.json]
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import arms
import machine
import moe_layer
import torch
import turns

STEPS_PER_TURN = 3
WARMUP_STEPS = 5

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
        turns.serve(ARMS[options.arm], warmup=WARMUP_STEPS, steps=STEPS_PER_TURN)
        return
    if options.nanochat:
        os.environ["NANOCHAT"] = str(options.nanochat.resolve())
    names = [name for name in ARMS if options.nanochat or "nanochat" not in name]
    names = [name for name in names if not options.only or options.only in name]
    processes = []
    for name in names:
        processes.append(turns.Process(name, [sys.executable, __file__, "--arm", name]))
        print(f"ready: {name} ({processes[-1].facts['set_up_s']:.0f} s)", flush=True)
    turns.take_turns(processes, options.rounds)
    tokens = arms.BATCH * arms.SEQ_LEN
    rows = {process.name: process.row(tokens) for process in processes}
    result = {
        "machine": machine.describe() | {"peak_gflop_per_s": machine.matrix_peaks()},
        "shape": {"preset": "bench-v3", "batch": arms.BATCH, "seq_len": arms.SEQ_LEN},
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


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Divide our speed by each peer's, in FLOPs, which for equal shapes is in tokens."""
    return {
        name: round(rows[ours]["gflop_per_s"] / rows[theirs]["gflop_per_s"], 3)
        for name, (ours, theirs) in RATIOS.items()
        if ours in rows and theirs in rows
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
