"""Peak memory of training beside what `ziphius inspect` says of it.

Every arm is a fresh process that runs the loop of `ziphius pretrain` on random tokens, checkpoint
at the end included. What counts is the largest resident memory less what the process held after
its imports, before anything was built.

    python bench/memory.py [--out bench/results/memory.json]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import machine
import torch

from ziphius.data.batch import Batch
from ziphius.models.cost import model_cost
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops import native
from ziphius.train.checkpoint import CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.loop import train
from ziphius.train.stages.pretrain import Pretrain

BATCH, SEQ_LEN, STEPS = 8, 512, 3
PRESETS = ("v3-1m", "bench-v3", "v3-10m")
"""The last one has 10M active parameters beside embedding and head."""
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class RandomRows:
    """A loader of random tokens, a document to a row."""

    vocab_size: int

    def micros(self, step: int, world_size: int) -> int:
        return 1

    def tokens_per_step(self, step: int) -> int:
        return BATCH * SEQ_LEN

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(0, self.vocab_size, (BATCH, SEQ_LEN), generator=generator)
        return Batch(ids_BT, torch.zeros_like(ids_BT))


def measure(preset: str, dtype: Dtype, steps: int = STEPS) -> dict[str, Any]:
    """Train a few steps in this process and return what they took, in bytes."""
    native.status()  # compiles its kernels, once per machine
    before = resident_bytes("VmRSS")
    config = get_preset(preset)
    model = Model(config)
    model.initialize(seed=0)
    training = TrainConfig(
        budget=f"{steps}-steps",
        seq_len=SEQ_LEN,
        global_batch_size=BATCH,
        dtype=dtype,
        device="cpu",
        validate_every=0,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = Pretrain(RandomRows(config.vocab_size), config, training)
        train(
            stage, model, training, folder, store=CheckpointStore(folder, training), recorder=None
        )
    memory = model_cost(config, batch=BATCH, context=SEQ_LEN, dtype=dtype).memory
    peak = resident_bytes("VmHWM") - before
    return {"peak": peak, "inspect": memory.train, "ratio": round(peak / memory.train, 3)}


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Read this process's resident memory, now or at most, as Linux counts it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{which}:\s*(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Measure every preset in both dtypes, or be one arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", nargs=2, metavar=("PRESET", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/memory.json"))
    options = parser.parse_args()
    if options.arm:
        preset, dtype = options.arm
        print(json.dumps(measure(preset, dtype, options.steps)))
        return
    arms = {}
    for preset in PRESETS:
        for dtype in get_args(Dtype):
            command = [sys.executable, __file__, "--arm", preset, dtype]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            row = arms[f"{preset} {dtype}"] = json.loads(result.stdout)
            mebibytes = (f"{row[key] / 2**20:8,.0f} MiB" for key in ("peak", "inspect"))
            print(f"{preset:10} {dtype:9} {' of '.join(mebibytes)}  {row['ratio']:.2f}", flush=True)
    document = {
        "machine": machine.describe(),
        "shape": {"batch": BATCH, "seq_len": SEQ_LEN, "steps": STEPS},
        "arms": arms,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
