"""What a command line shares with its surroundings: streams, signals, memory. Imports are light."""

import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ziphius.core.errors import ConfigError

# What torch says when the CPU, or mapping a file, has no memory left.
_ALLOCATION = re.compile(
    r"can't allocate memory|not enough memory|unable to mmap|Cannot allocate memory"
)
_BYTES = re.compile(r"(?:tried to allocate|unable to mmap) (\d+) bytes")
_CUDA_BYTES = re.compile(r"Tried to allocate ([\d.]+ [KMG]iB)")
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def share_processors() -> None:
    """Let OpenMP's waiting threads spin for microseconds only, unless the user says otherwise.

    By default they spin for milliseconds. Where something else wants the processors too, they then
    keep off the very thread they wait for: of two training runs on two cores one took 0.28 s a step
    and the other did not end 12 steps in a minute, with this setting 0.52 and 0.58 s each
    (docs/lab/2026-11-21-cpu-training-step.md). It has to be said before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def prepare_streams() -> None:
    """Read UTF-8 alone whatever the locale says, and write what its characters do not hold escaped.

    A stream that was closed from outside (`>&-`) goes to nowhere; else the next file opened would
    get its number, and what is printed.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def refuse_other_than_utf8(words: Sequence[str]) -> None:
    """Raise if an argument holds bytes that are no UTF-8, which Python passes on as surrogates."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"The argument {word!a} is not UTF-8 text.") from error


@contextmanager
def sigterm_cleans_up() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception with exit code 143, unless it is handled."""
    is_free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a fork has nothing to clean up
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back until the block is left, so that what it changes is left whole.

    The third one does not wait: something hangs.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, or handled by whoever called
        return
    came = 0

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came == 3:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def out_of_memory(error: Exception) -> str | None:
    """Say in one line that memory ran out, None if the error is another one."""
    text = str(error)
    is_cuda = type(error).__name__ == "OutOfMemoryError"
    lacks = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if not (is_cuda or lacks or _ALLOCATION.search(text)):
        return None
    found = _BYTES.search(text)
    size = f"{int(found[1]):,} bytes" if found else None
    if found := _CUDA_BYTES.search(text):
        size = found[1]
    return (
        f"Out of memory{f': {size} more were needed at once' if size else ''}. Take a smaller "
        "model or --dtype; to answer, fewer or shorter answers (--n, --max-new-tokens); to train, "
        "fewer rows at once (--train.micro-batch-size) or --train.activation-checkpointing. "
        "ziphius inspect MODEL tells what a model takes."
    )


def stdout_trouble(error: Exception) -> str | None:
    """Say why standard output cannot be written, None if the error is another one.

    Unlike that of a file, whose errors are named where they happen, its error carries no path.
    """
    if not isinstance(error, OSError) or error.filename or error.errno not in _CANNOT_WRITE:
        return None
    silence_stdout()
    return f"Cannot write standard output: {error.strerror}."


def silence_stdout() -> None:
    """Send the rest to nowhere: Python would complain once more when it closes the stream."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
