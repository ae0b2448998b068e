"""What a checkpoint folder must hold: each file with its size and SHA-256, and a sum of itself.

A folder appears by one rename after everything in it is on the disk, so a crash leaves no half of
one; the manifest finds what happens later: bits that flip, copies that were cut short, files that
were lost or come from another step.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import ValidationError

from ziphius.core.config import Config, explain
from ziphius.core.files import write_file
from ziphius.train.errors import TrainingError

MANIFEST_FILE = "MANIFEST.json"
_SUM = "sha256"


class DamagedError(TrainingError):
    """A checkpoint is not what its manifest says; the message names the file and the reason."""


class FileEntry(Config):
    """One file."""

    size_bytes: int
    """Its exact size."""
    sha256: str
    """Of its bytes, in hexadecimal."""

    @classmethod
    def of(cls, file: Path) -> Self:
        """Measure a file."""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(size_bytes=file.stat().st_size, sha256=digest)


class Manifest(Config):
    """What a checkpoint is and what it is made of."""

    format: Literal[1] = 1
    """Of this file and of what it lists."""
    step: int
    """Steps done."""
    validation_loss: float | None
    """The last loss on held-out text, None if there was none."""
    files: dict[str, FileEntry]
    """By path inside the folder."""


def write_manifest(folder: Path, *, step: int, validation_loss: float | None) -> None:
    """List all files that are in a folder; nothing may be added after it."""
    is_number = validation_loss is not None and math.isfinite(validation_loss)
    manifest = Manifest(
        step=step,
        validation_loss=validation_loss if is_number else None,
        files={name: FileEntry.of(folder / name) for name in sorted(_names(folder))},
    )
    data = manifest.model_dump()
    text = json.dumps(data | {_SUM: _own_sum(data)}, indent=1)
    write_file(folder / MANIFEST_FILE, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest, without looking at the files it lists.

    Raises:
        DamagedError: it is missing, damaged, or of another step than the name of the folder says.
    """
    path = folder / MANIFEST_FILE
    try:
        data = json.loads(path.read_bytes())
        own_sum = data.pop(_SUM, None)
        manifest = Manifest.model_validate(data)
    except OSError as error:
        raise DamagedError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DamagedError(f"{MANIFEST_FILE} is damaged: {explain(error)}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedError(f"{MANIFEST_FILE} is damaged: it is no JSON object") from error
    if own_sum != _own_sum(manifest.model_dump()):
        raise DamagedError(f"{MANIFEST_FILE} is damaged: its own SHA-256 differs")
    if folder.name != f"step-{manifest.step}":
        raise DamagedError(f"{MANIFEST_FILE} is that of step {manifest.step}")
    return manifest


def check_folder(folder: Path) -> Manifest:
    """Hold every file of a checkpoint against the manifest and return it.

    Raises:
        DamagedError: something is missing or differs.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DamagedError(f"{MANIFEST_FILE} lists {name!r}, which is not in the folder")
        _check_file(folder / name, name, entry)
    return manifest


def _check_file(file: Path, name: str, entry: FileEntry) -> None:
    try:
        if file.is_symlink() or not file.is_file():
            raise DamagedError(f"{name} is missing")
        size_bytes = file.stat().st_size
        if size_bytes != entry.size_bytes:
            raise DamagedError(f"{name} has {size_bytes} bytes instead of {entry.size_bytes}")
        if FileEntry.of(file) != entry:
            raise DamagedError(f"{name} differs from what was written: its SHA-256 is another one")
    except OSError as error:
        raise DamagedError(f"{name} cannot be read: {error.strerror}") from error


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _own_sum(data: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
