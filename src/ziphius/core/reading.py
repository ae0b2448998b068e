"""Reading files that somebody else wrote: plain files of a bounded size inside the named folder.

A name in a downloaded folder can lead anywhere ("../../x", a link to /etc/passwd), a pipe blocks
whoever opens it, and a link to /dev/zero has no end. All are refused before a byte is read, and
JSON is taken strictly: each key once, no NaN, no half characters. The callers name the kind of
error that their users expect.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ziphius.core.errors import ZiphiusError

ErrorKind = type[ZiphiusError]

_REVISIONS = "snapshots"
_CACHED = re.compile(r"models--.+")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def list_folder(folder: Path, error: ErrorKind) -> list[str]:
    """Return the sorted names in a folder; raise for one that is missing or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        raise error(f"{folder} does not exist: no such model folder.") from None
    except NotADirectoryError:
        raise error(f"{folder} is neither a model folder nor a .gguf file.") from None
    except (OSError, ValueError) as problem:
        raise error(f"{folder} cannot be read: {_reason(problem)}.") from problem


def regular_file(path: Path, error: ErrorKind) -> Path:
    """Return `path` if it is an ordinary file; raise for anything else, without opening it."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist (or is a link to nothing).") from None
    except (OSError, ValueError, RuntimeError) as problem:
        raise error(f"{path} cannot be opened: {_reason(problem)}.") from problem
    if not stat.S_ISREG(mode):
        raise error(f"{path} is not a regular file but a folder, pipe or device.")
    return path


def file_inside(folder: Path, name: str, error: ErrorKind) -> Path:
    """Return the path of a file that a model folder names, after checking that it stays inside.

    Links may lead to other places of the folder, and to the `blobs` of a Hugging Face cache: those
    beside the `snapshots` that the folder is in, or any when `huggingface_hub` filled a folder of
    the user's own with links to them. A cache holds downloads alone.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise error(
            f"{folder} names the file {name!r}: only plain names inside the folder are read."
        )
    path = regular_file(folder / name, error)
    root, target = folder.resolve(), path.resolve()
    allowed = [
        root,
        *(place.parent / "blobs" for place in root.parents if place.name == _REVISIONS),
    ]
    if not any(target.is_relative_to(place) for place in allowed) and not _is_blob(target):
        raise error(
            f"{path} is a link that leaves the model folder (to {target}). "
            "Copy the file into the folder if you trust it."
        )
    return path


def _is_blob(path: Path) -> bool:
    """Tell whether a file is one of a cache's: `models--<owner>--<name>/blobs/<checksum>`."""
    return path.parent.name == "blobs" and _CACHED.fullmatch(path.parent.parent.name) is not None


@contextmanager
def open_file(path: Path, error: ErrorKind) -> Iterator[BinaryIO]:
    """Open an ordinary file; what the system says against reading it becomes one clear error."""
    regular_file(path, error)
    try:
        # Not blocking: a pipe may have taken the file's place since it was looked at.
        with open(path, "rb", opener=_open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise error(f"{path} is not a regular file but a pipe or device.")
            yield stream
    except OSError as problem:
        raise error(f"{path} cannot be read: {_reason(problem)}.") from problem


def read_bytes(path: Path, limit: int, error: ErrorKind) -> bytes:
    """Read a whole file of at most `limit` bytes."""
    with open_file(path, error) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes; at most {limit:,} are read.")
        return stream.read(limit)


def read_text(path: Path, limit: int, error: ErrorKind) -> str:
    """Read a whole file of at most `limit` bytes as UTF-8."""
    try:
        return read_bytes(path, limit, error).decode()
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8: {problem.reason} at byte {problem.start}.") from problem


def read_object(path: Path, limit: int, error: ErrorKind) -> dict[str, Any]:
    """Read a file of at most `limit` bytes that holds one JSON object."""
    return parse_object(read_bytes(path, limit, error), str(path), error)


def parse_object(content: bytes, origin: str, error: ErrorKind) -> dict[str, Any]:
    """Parse one JSON object strictly.

    Args:
        content: UTF-8.
        origin: what the content is, the subject of the message when it is refused.
        error: what to raise.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise error(f"{origin} lists {ascii(twice)[1:-1][:200]} twice.")
        return found

    def constant(name: str) -> NoReturn:
        raise error(f"{origin} holds {name}, which is not JSON.")

    try:
        value = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=constant)
        half = _find_half_pair(value, "") if _ESCAPED_HALF_PAIR.search(content) else None
    except ZiphiusError:
        raise
    except RecursionError as problem:
        raise error(f"{origin} is not valid JSON: it is nested too deeply.") from problem
    except ValueError as problem:
        raise error(
            f"{origin} is not valid JSON ({problem}): it is cut off or not this kind of file. "
            "Copy it again."
        ) from problem
    if not isinstance(value, dict):
        raise error(f"{origin} holds a JSON {type(value).__name__}, not an object.")
    if half is not None:
        raise error(
            f"{origin} holds half of a UTF-16 pair under {half[:200]}, which no text can hold. "
            "Write the whole character."
        )
    return value


def _find_half_pair(value: object, place: str) -> str | None:
    """Name where a string holds a lone surrogate, as keys and indices joined by dots."""
    if isinstance(value, str):
        return (place or "its only value") if _HALF_PAIR.search(value) else None
    entries: list[tuple[str, object]] = []
    if isinstance(value, dict):
        entries = [(ascii(key)[1:-1], entry) for key, entry in value.items()]
        for (shown, _), key in zip(entries, value, strict=True):
            if _HALF_PAIR.search(key):
                return f"{place}.{shown}".removeprefix(".")
    elif isinstance(value, list):
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    for shown, entry in entries:
        found = _find_half_pair(entry, f"{place}.{shown}".removeprefix("."))
        if found is not None:
            return found
    return None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)
