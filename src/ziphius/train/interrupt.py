"""Ctrl-C and SIGTERM: the first asks the run to save and end, the second ends it at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Which signal asked the run to end; None while none did."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the first signal for the length of a block; the second acts as if nothing caught it.

    Outside the main thread Python hands out no signals, and nothing is ever asked.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal = number
        restore()
        name = signal.Signals(number).name
        print(f"\n{name}: saving after this step; once more ends at once.", file=sys.stderr)

    previous = {number: signal.signal(number, ask) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield request
    finally:
        restore()
