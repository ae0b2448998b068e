"""Watch for a run that goes wrong: values that are not finite, and losses that jump.

What is not finite always stops the run before the weights are touched. A jump of the loss is
recorded, and stops the run where asked for.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ziphius.core.config import Config

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
    """Number of past losses that a new one is compared with; nothing is a jump before half as many
    are known."""


class Guard:
    """The losses of the last steps, the jumps there were, and the steps without a loss."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.window: deque[float] = deque(maxlen=config.spike_window)
        self.spikes: list[dict[str, float]] = []
        self.skipped_steps = 0
        """Steps that had nothing to learn; their loss of 0 is no loss to compare others with."""

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
        return {
            "window": list(self.window),
            "spikes": self.spikes,
            "skipped_steps": self.skipped_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.window = deque(state["window"], maxlen=self.config.spike_window)
        self.spikes = list(state["spikes"])
        self.skipped_steps = state.get("skipped_steps", 0)  # older checkpoints counted none

    def _jump(self, loss: float) -> float | None:
        if len(self.window) < self.config.spike_window // 2:
            return None
        mean = statistics.fmean(self.window)
        spread = max(statistics.pstdev(self.window, mean), MIN_SPREAD * abs(mean))
        return (loss - mean) / spread if spread else None
