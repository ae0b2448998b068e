"""Starts of a small run, each alone in its process, for tests that kill it.

    python crash_worker.py

reads one JSON object a line, `{"folder": ..., "workers": ..., "dies_at": ..., "holds_at": ...}`,
forks a process that goes on where the folder's run stands, prints its number, and its exit status
when it has ended. So torch is imported once, and not for every kill.

`metrics.jsonl` is the curve as a user would keep it: cut back to the checkpoint at each resume.
`replayed.txt` is never cut back, so that a step that was done twice stands there twice. Everything
a state can hold has an effect here: the loss draws from all random generators, and the stage
counts.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from tests.training import RandomRows, moe_config, train_config
from ziphius.core.errors import ZiphiusError
from ziphius.core.files import write_file
from ziphius.data.batch import Batch
from ziphius.data.prefetch import Prefetcher
from ziphius.models.model import Model
from ziphius.train.checkpoint import CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.loop import train
from ziphius.train.result import TrainResult
from ziphius.train.rng import seed_generators
from ziphius.train.seams import StepRecord, ValidationRecord
from ziphius.train.stage import LossOutput
from ziphius.train.stages.pretrain import Pretrain

STEPS, SAVE_EVERY = 72, 3
STEP_S = 0.01
"""Each step takes at least this long, so that kills find the run at many places."""
METRICS, REPLAYED, STARTS = "metrics.jsonl", "replayed.txt", "starts.txt"
RELEASE = "release"
"""Ending of a file beside the run's folder, that lets a process go on which holds."""
CALLS = {
    "fsync": ("fsync",),
    "mkdir": ("mkdir",),
    "rename": ("rename", "replace"),
    "remove": ("unlink", "remove", "rmdir"),
}
"""The calls by which a checkpoint comes and goes, as functions of `os`."""


class NoisyStage(Pretrain):
    """Pretraining whose losses hang on the random generators and on how many there were."""

    losses = begun = 0
    holds_at: int | None = None
    """Begin no more steps than this before `RELEASE` is there: a signal that comes late finds the
    run still at work."""
    release: Path

    def batches(self, step: int) -> list[Batch]:
        time.sleep(STEP_S)
        while self.begun == self.holds_at and not self.release.exists():
            time.sleep(STEP_S)
        self.begun += 1
        return super().batches(step)

    def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
        output = super().loss(model, batch, progress)
        self.losses += 1
        noise = random.random() + np.random.rand() + float(torch.rand(())) + self.losses % 7
        term = output.terms["next_token"]
        term.loss_sum = term.loss_sum * (1.0 + 0.01 * noise)
        return output

    def validate(self, model: Model) -> dict[str, float]:
        return {"loss": float(model.lm_head.weight.abs().sum())}

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.losses = state["losses"]


class Curve:
    """A recorder of everything but times, which differ between equal runs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics, self.folder = folder / METRICS, folder
        self.is_resumed = False

    def resumed(self, step: int, exact: str) -> None:
        self.is_resumed = True
        lines = self.metrics.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_file(self.metrics, "".join(kept))
        self._append(self.folder / STARTS, f"{step} {exact}\n")

    def step(self, record: StepRecord) -> None:
        entry = {
            "loss": record.loss.hex(),
            "grad_norm": record.grad_norm.hex(),
            "learning_rate": record.learning_rate.hex(),
            "loads": {str(layer): counts for layer, counts in record.counts_by_layer.items()},
        }
        self._line(record.step, entry)
        self._append(self.folder / REPLAYED, f"{record.step} {record.loss.hex()}\n")

    def validation(self, record: ValidationRecord) -> None:
        self._line(record.step, {"validation": record.figures["loss"].hex()})

    def warn(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass

    def _line(self, step: int, entry: dict[str, Any]) -> None:
        if not self.is_resumed:  # what stands there is from a start without a checkpoint
            self.metrics.unlink(missing_ok=True)
            self.is_resumed = True
        self._append(self.metrics, json.dumps({"step": step} | entry) + "\n")

    @staticmethod
    def _append(path: Path, line: str) -> None:
        with path.open("a") as file:
            file.write(line)


def run_config(**changes: Any) -> TrainConfig:
    """A run with an average, held-out figures and many checkpoints."""
    fields: dict[str, Any] = {
        "budget": f"{STEPS}-steps",
        "ema_decay": 0.9,
        "save_every": f"{SAVE_EVERY}-steps",
        "validate_every": 5,
        "workers": 1,
    }
    return train_config(**(fields | changes))


def start(folder: Path, config: TrainConfig) -> TrainResult:
    """Begin the run of a folder, or go on with it, until it is done or a signal comes."""
    model_config = moe_config()
    model = Model(model_config)
    model.initialize(config.seed)
    curve = Curve(folder)
    seed_generators(config.seed)
    store = CheckpointStore(folder, config, warn=curve.warn)
    with Prefetcher(RandomRows(config), workers=config.workers) as loader:
        stage = NoisyStage(loader, model_config, config)
        return train(stage, model, config, folder, store=store, recorder=curve)


def main(folder: Path, workers: int) -> int:
    """Do one start; 2 is an error for the user."""
    try:
        result = start(folder, run_config(workers=workers))
    except ZiphiusError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"step": result.step, "stopped_by": result.stopped_by}))
    return 0


def die_at(kind: str, number: int) -> None:
    """Kill this process where it would make the n-th call of a kind, before that call."""
    calls = count(1)

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in CALLS[kind]:
        setattr(os, name, deadly(getattr(os, name)))


def run_alone(
    folder: Path, workers: int, dies_at: tuple[str, int] | None, holds_at: int | None
) -> NoReturn:
    """Be a process group of its own that trains, and end."""
    os.setsid()
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    if dies_at is not None:
        die_at(*dies_at)
    NoisyStage.holds_at, NoisyStage.release = holds_at, folder.with_suffix(f".{RELEASE}")
    status = 1
    try:
        status = main(folder, workers)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Start one process after the other, as asked."""
    torch.set_num_threads(1)  # and so no thread is there that a fork would lose
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            own = wanted["workers"], wanted["dies_at"], wanted["holds_at"]
            run_alone(Path(wanted["folder"]), *own)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
