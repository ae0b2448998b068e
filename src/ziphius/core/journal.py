"""Results of long work as lines of JSON, each kept as soon as it is there, however the work ends.

The first line says what the work is; work of another kind does not go on with it. A line that a
killed process or a full disk left unfinished is cut off, with all behind it. Every other one is one
result under its number, in the order in which they came.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ziphius.core.closing import Closing
from ziphius.core.errors import ConfigError, OutputError

KEY = "row"
"""Of a result's number in its line."""


class Journal(Closing):
    """A file of results that one process at a time adds to; what is there is found on opening.

    The lock is the kernel's (flock), so that a killed process leaves none behind.

    Args:
        path: of the file, made if it is not there, with its folder.
        about: what the work is, in JSON's types.

    Raises:
        OutputError: the file cannot be written, or another process writes it.
        ConfigError: it is about other work, or no such file.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._cannot("write", error) from error
        try:
            self._lock()
            self._read(json.loads(json.dumps(about)))
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        """Let go of the file, which stays."""
        os.close(self._file)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Put down a result, under a number that has none.

        Raises:
            OutputError: it cannot be written; those before it are kept.
        """
        assert number not in self._places
        place = self._append({KEY: number} | dict(result))
        self._places[number] = place

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of all results in the order of their numbers."""
        for _, (start, size) in sorted(self._places.items()):
            yield os.pread(self._file, size, start)

    def discard(self) -> None:
        """Remove the file, once its results are elsewhere."""
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.path} is in use by another process: wait for its end, or choose another "
                "file."
            ) from error
        except OSError as error:
            raise self._cannot("lock", error) from error
        if not (self.path.exists() and self.path.stat().st_ino == os.fstat(self._file).st_ino):
            raise OutputError(f"{self.path}: another process has just finished it.")

    def _read(self, about: dict[str, Any]) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            first = file.readline()
            if first.endswith(b"\n"):
                self._check(_object(first), about)
                self._end = len(first)
            elif file.seek(0) == 0 and first and not _is_beginning(first):
                raise self._other()
            while self._end and (line := file.readline()):
                entry = _object(line)
                number = entry.get(KEY)
                if not (line.endswith(b"\n") and isinstance(number, int)):
                    break
                self._places[number] = self._end, len(line)
                self._end += len(line)
        self._cut()
        if not self._end:
            self._append({"about": about})

    def _check(self, found: dict[str, Any], about: dict[str, Any]) -> None:
        its = found.get("about")
        if not isinstance(its, dict):
            raise self._other()
        if differing := [key for key in its | about if its.get(key) != about.get(key)]:
            raise ConfigError(
                f"{self.path} was begun with another {', another '.join(differing)}: give what it "
                "was begun with, or remove it to begin anew."
            )

    def _other(self) -> ConfigError:
        return ConfigError(f"{self.path} is in the way: choose another file, or remove it.")

    def _append(self, entry: dict[str, Any]) -> tuple[int, int]:
        line = json.dumps(entry).encode() + b"\n"
        start, left = self._end, memoryview(line)
        try:
            while left:
                left = left[os.pwrite(self._file, left, start + len(line) - len(left)) :]
        except OSError as error:
            self._cut()
            raise self._cannot("write", error) from error
        self._end += len(line)
        return start, len(line)

    def _cut(self) -> None:
        """Cut off what is behind the last whole line."""
        os.ftruncate(self._file, self._end)

    def _cannot(self, do: str, error: OSError) -> OutputError:
        return OutputError(f"Cannot {do} {self.path}: {error.strerror or error}.")


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_beginning(text: bytes) -> bool:
    """Tell whether a first line without an end may be one of a journal."""
    start = b'{"about": {'
    return text.startswith(start[: len(text)])
