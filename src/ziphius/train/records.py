"""`metrics.jsonl`: one JSON object for each step and each measurement, in the order they happened.

Numbers that decide whether two runs are equal stand as decimals for people and, with `_hex` behind
the name, as exact hexadecimal floats. What a clock measured has keys of its own, `CLOCK_KEYS`, that
a comparison leaves out.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.core.errors import OutputError
from ziphius.core.files import write_file
from ziphius.train.seams import StepRecord, ValidationRecord

METRICS_FILE = "metrics.jsonl"
CLOCK_KEYS = frozenset(("seconds", "tokens_per_s", "eta_s", "mfu"))


@dataclass(frozen=True)
class Speed:
    """How fast a run is, over its last steps."""

    tokens_per_s: float
    mfu: float | None = None
    """Model FLOPs utilization, of the matrix peak measured here; None where that was not
    measured."""


class MetricsFile:
    """Appends lines, each of which is in the hands of the system when `write` returns.

    The file is opened for every line: at most one a step, and nothing is left open by a run that
    ends in an error.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE

    def write(self, line: dict[str, Any]) -> None:
        """Append one object."""
        text = json.dumps(_spelled(line), allow_nan=False, separators=(",", ":"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode() + b"\n")
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path}: {error.strerror or error}. Mend that; then the same "
                "command goes on from its last checkpoint."
            ) from error

    def cut_after(self, step: int) -> None:
        """Forget what is beyond a step, so that a resumed run writes no step twice.

        A last line that a crash tore goes too.
        """
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().splitlines() if _reaches(line) <= step]
        write_file(self.path, b"".join(line + b"\n" for line in kept))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the objects that were written, without torn ones."""
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                if (entry := _entry(line)) is not None:
                    yield entry


def step_line(record: StepRecord, speed: Speed) -> dict[str, Any]:
    """Lay a step out for the file."""
    return {
        "kind": "step",
        "step": record.step,
        "loss": record.loss,
        "loss_hex": record.loss.hex(),
        "terms": record.terms,
        "tokens": record.tokens,
        "bytes": record.bytes_count,
        "learning_rate": record.learning_rate,
        "grad_norm": record.grad_norm,
        "grad_norm_hex": record.grad_norm.hex(),
        "grad_norm_by_part": record.grad_norm_by_part,
        "max_vio": {layer: max_vio(counts) for layer, counts in record.counts_by_layer.items()},
        "expert_counts": record.counts_by_layer,
        "gate_entropy": record.gate_entropy_by_layer,
        "skipped": record.is_skipped,
        "progress": record.progress,
        "seconds": record.seconds,
        "tokens_per_s": speed.tokens_per_s,
        "eta_s": record.eta_s,
        "mfu": speed.mfu,
    }


def validation_line(record: ValidationRecord) -> dict[str, Any]:
    """Lay a measurement out for the file."""
    exact = {f"{name}_hex": value.hex() for name, value in record.figures.items()}
    return {
        "kind": "validation",
        "step": record.step,
        "figures": record.figures,
        "exact": exact,
        "seconds": record.seconds,
    }


def max_vio(counts: Sequence[int]) -> float:
    """Return how far the busiest expert is above the mean, as a share of it (arXiv 2408.15664).

    0 is even load; without any token the load is even too.
    """
    mean = sum(counts) / len(counts)
    return max(counts) / mean - 1.0 if mean else 0.0


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Return the lines of a run folder that are whole; none without a file."""
    return MetricsFile(folder).entries()


def metrics_hash(folder: Path) -> str:
    """Hash what a run's lines say, clocks left out: equal runs give equal hashes."""
    digest = hashlib.sha256()
    for entry in read_metrics(folder):
        kept = {key: value for key, value in entry.items() if key not in CLOCK_KEYS}
        digest.update(json.dumps(kept, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def _reaches(line: bytes) -> float:
    """Return the step of a line; what is no line is beyond all steps."""
    entry = _entry(line)
    return math.inf if entry is None else entry["step"]


def _spelled(value: Any) -> Any:
    """Spell out numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spelled(entry) for key, entry in value.items()}
    return value
