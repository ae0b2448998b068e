"""Files and folders that appear whole or not at all: write aside, fsync, rename, fsync the folder.

A reader, or this program after a crash, sees the old state or the new one and nothing between. The
last fsync matters: a rename lives in the folder, and without it a power cut may undo the rename.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ziphius.core.errors import OutputError


def write_file(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path` in one step, replacing a file that is there."""
    data = content.encode() if isinstance(content, str) else content
    temporary = beside(path)
    with _explained(path):
        try:
            # "x" with the default mode: the umask decides the rights, as with any file of the user.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` when the block ends without an error.

    The folder yielded stands beside `path`, so that the final rename stays on one file system. On
    an error it is removed and `path` is untouched. Missing parents of `path` are made.

    Raises:
        OutputError: `path` is a file or a folder with something in it, or cannot be written.
    """
    refuse_occupied(path)
    temporary = beside(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        with _explained(path):
            _sync_tree(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_occupied(path: Path) -> None:
    """Raise if a new folder at `path` would hide what is there; call it before long work."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is in the way: it is not a folder. Choose another path.")
    with _explained(path):
        if path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} is not empty. Choose another folder, or remove it first.")


def beside(path: Path) -> Path:
    """Name a temporary neighbour of `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: renames and new files survive a power cut."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name), os.O_RDONLY)
        sync_folder(Path(parent))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which path an operating system's error speaks, in words for the user."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
