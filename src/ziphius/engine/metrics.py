"""Counters and histograms of an engine as plain data, under the names that vLLM gives them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ziphius.engine.sequence import SequenceState

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
HISTOGRAMS = (
    "time_to_first_token",
    "inter_token_latency",
    "e2e_request_latency",
    "request_queue_time",
    "request_prefill_time",
    "request_decode_time",
    "request_time_per_output_token",
)


class Histogram:
    """How often a time fell under each bound.

    Args:
        bounds: upper ones in seconds, rising; a value on a bound counts as under it.
    """

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._rising = tuple(bounds)
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._rising, value)] += 1
        self._sum += value

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """Count many values at once."""
        places = self._bounds.searchsorted(values)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())

    def snapshot(self) -> dict[str, Any]:
        """Return bounds, counts (one more than bounds), sum and total count."""
        return {
            "bounds": self._bounds.tolist(),
            "counts": self._counts.tolist(),
            "sum": self._sum,
            "count": int(self._counts.sum()),
        }


@dataclass
class Metrics:
    """What an engine has done so far."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_steps: int = 0
    num_steps_apart: int = 0
    """Steps that raised, and were computed anew sequence by sequence to find out why."""
    step_error: str = ""
    """What the last of them raised."""
    finished: Counter[str] = field(default_factory=Counter)
    """Sequences by finish reason."""
    admission_rejections: Counter[str] = field(default_factory=Counter)
    """Requests refused, by why."""
    cancelled: Counter[str] = field(default_factory=Counter)
    """Sequences cancelled, by where they were: queue, prefill, decode."""
    histograms: Mapping[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in HISTOGRAMS}
    )

    def count_first_token(self, sequence: SequenceState, now: float) -> None:
        """Put down that a sequence has its first token."""
        self.prompt_tokens += sequence.num_prompt if sequence.sample == 0 else 0
        self._observe("time_to_first_token", now - sequence.arrival_time)
        self._observe("request_queue_time", sequence.scheduled_time - sequence.arrival_time)
        self._observe("request_prefill_time", now - sequence.scheduled_time)

    def count_finished(self, sequence: SequenceState, now: float) -> None:
        """Put down a sequence that has just ended."""
        assert sequence.finish_reason is not None
        self.finished[sequence.finish_reason] += 1
        self._observe("e2e_request_latency", now - sequence.arrival_time)
        new = len(sequence.tokens) - sequence.num_prompt
        decode_time = sequence.last_token_time - sequence.first_token_time
        if new:
            self._observe("request_decode_time", decode_time)
        if new > 1:
            self._observe("request_time_per_output_token", decode_time / (new - 1))

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def snapshot(self) -> dict[str, Any]:
        """Return all as numbers, lists and dicts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "num_steps": self.num_steps,
            "num_steps_apart": self.num_steps_apart,
            "step_error": self.step_error,
            "request_success": dict(self.finished),
            "admission_rejections": dict(self.admission_rejections),
            **{f"cancelled_in_{place}": count for place, count in self.cancelled.items()},
            **{name: histogram.snapshot() for name, histogram in self.histograms.items()},
        }
