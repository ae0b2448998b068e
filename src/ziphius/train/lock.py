"""One process per run folder: a lock that ends with the process that holds it, however it ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ziphius.core.errors import OutputError
from ziphius.train.errors import TrainingError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder for the length of a block; the folder is made.

    The lock is the kernel's (flock), so that a killed process leaves none behind. The file stays:
    removing it would let two processes hold locks on two files of one name.

    Raises:
        TrainingError: another process holds the lock; the message has its number.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"Cannot use the folder {folder}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"{folder} is in use by {_holder(descriptor)}. Wait for its end, stop it, or "
                "choose another folder."
            ) from error
        except OSError as error:
            raise TrainingError(f"{folder} cannot be locked: {error.strerror}.") from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # lets go of the lock


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
