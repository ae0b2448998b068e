"""The line that shows a run: redrawn in place on a terminal, printed now and then elsewhere."""

import math
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ziphius.train.records import Speed

PLAIN_EVERY_S = 15.0


class LiveLine:
    """Shows the newest line of a run.

    Args:
        console: where; what it is decides between a line in place and one every `PLAIN_EVERY_S`.
        is_quiet: show nothing but messages.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        console: Console,
        *,
        is_quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.is_quiet, self._clock = console, is_quiet, clock
        self._live: Live | None = None
        self._printed_at = -math.inf
        self._pending: str | None = None

    def show(self, line: str) -> None:
        """Show a line in the place of the one before."""
        if self.is_quiet:
            return
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=False)
                self._live.start()
            # A bar, not a rich markup: figures must not be read as styles.
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        elif self._clock() - self._printed_at >= PLAIN_EVERY_S:
            self._print(line)
        else:
            self._pending = line

    def message(self, text: str) -> None:
        """Print something that stays, after a line that came before it."""
        if self._pending is not None:
            self._print(self._pending)
        self.console.print(Text(text))

    def close(self) -> None:
        """Leave the last line where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._pending is not None:
            self._print(self._pending)

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self._printed_at, self._pending = self._clock(), None


def step_text(
    *,
    step: int,
    progress: float,
    loss: float,
    baselines: Mapping[str, float],
    speed: Speed,
    eta_s: float,
) -> str:
    """Write the line of a step, its loss beside what it has to beat."""
    beside = ", ".join(
        f"{name} {baselines[key]:.2f}"
        for key, name in (("uniform", "ln V"), ("bigram", "bigram"))
        if key in baselines
    )
    parts = [
        f"step {step:,}",
        f"{100 * progress:.0f} %",
        f"loss {loss:.4f}" + (f" ({beside})" if beside else ""),
        f"{speed.tokens_per_s:,.0f} tokens/s",
    ]
    if speed.mfu is not None:
        parts.append(f"MFU {100 * speed.mfu:.0f} %")
    return "  ".join([*parts, f"ETA {duration(eta_s)}"])


def duration(seconds: float) -> str:
    """Write a time as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
