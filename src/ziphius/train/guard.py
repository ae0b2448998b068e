"""Watch for a run that goes wrong: values that are not finite, and losses that jump.

What is not finite always stops the run before the weights are touched. A jump of the loss is
recorded, and stops the run where asked for.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from ziphius.core.config import Config
from ziphius.core.files import new_folder, write_file
from ziphius.data.batch import Batch

MIN_SPREAD = 1e-3
"""Least standard deviation, relative to the mean: a flat loss must not make noise a jump."""


class GuardConfig(Config):
    """What counts as a loss that went wrong, and what happens then."""

    on_spike: Literal["warn", "stop"] = "warn"
    """What a jump of the loss does: a warning and an entry in the result, or the end of the run
    with the batch saved."""
    spike_sigma: Annotated[float, Field(gt=0)] = 6.0
    """A loss this many standard deviations above the mean of the window is a jump."""
    spike_window: Annotated[int, Field(ge=10)] = 100
    """Losses that are looked back at; nothing is a jump before half as many are known."""


class Guard:
    """The losses of the last steps, and the jumps there were."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.window: deque[float] = deque(maxlen=config.spike_window)
        self.spikes: list[dict[str, float]] = []

    def observe(self, step: int, loss: float) -> float | None:
        """Take in a finite loss; return by how many standard deviations it jumped, if it did."""
        jump = self._jump(loss)
        self.window.append(loss)
        if jump is None or jump <= self.config.spike_sigma:
            return None
        self.spikes.append({"step": step, "loss": loss, "sigma": jump})
        return jump

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-serialisable."""
        return {"window": list(self.window), "spikes": self.spikes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.window = deque(state["window"], maxlen=self.config.spike_window)
        self.spikes = list(state["spikes"])

    def _jump(self, loss: float) -> float | None:
        if len(self.window) < self.config.spike_window // 2:
            return None
        mean = statistics.fmean(self.window)
        spread = max(statistics.pstdev(self.window, mean), MIN_SPREAD * abs(mean))
        return (loss - mean) / spread if spread else None


def dump_step(folder: Path, batches: Sequence[Batch], report: Mapping[str, Any]) -> Path:
    """Save the micro-batches of a step that failed, and what is known of it, in a new folder.

    Args:
        folder: of the run; `failed-step-N` is made in it.
        batches: of this rank.
        report: with the keys `step` and `rank`.

    Returns:
        The new folder.
    """
    path = next(path for path in _names(folder, report) if not path.exists())
    with new_folder(path) as unfinished:
        save_file(dict(_tensors(batches)), unfinished / "batch.safetensors")
        text = json.dumps(_without_nan(report), indent=1, allow_nan=False)
        write_file(unfinished / "report.json", text + "\n")
    return path


def _names(folder: Path, report: Mapping[str, Any]) -> Iterator[Path]:
    name = f"failed-step-{report['step']}"
    if report["rank"]:
        name += f"-rank-{report['rank']}"
    yield folder / name
    for again in range(2, 1_000):
        yield folder / f"{name}-{again}"


def _tensors(batches: Sequence[Batch]) -> Iterator[tuple[str, Tensor]]:
    for micro, batch in enumerate(batches):
        yield f"micro-{micro}.ids", batch.ids_BT.cpu().contiguous()
        yield f"micro-{micro}.documents", batch.documents_BT.cpu().contiguous()
        if batch.counted_BT is not None:
            yield f"micro-{micro}.counted", batch.counted_BT.cpu().contiguous()


def _without_nan(value: Any) -> Any:
    """Spell out numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
