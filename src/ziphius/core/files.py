"""Files and folders that appear whole or not at all: write aside, fsync, rename, fsync the folder.

A reader, or this program after a crash, sees the old state or the new one and nothing between. The
last fsync matters: a rename lives in the folder, and without it a power cut may undo the rename.
What a killed process left beside its target goes when the next one writes there.
"""

import errno
import functools
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ziphius.core.errors import ConfigError, OutputError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors that say that a disk, or a user's share of it, is full."""


def user_path(text: str) -> Path:
    """Read a path as a user types it: ~ and ~name stand for home folders."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: there is no such user, or no home folder.") from error


def existing_path(text: str) -> Path | None:
    """Return the file or folder that a user's word names, None if there is none."""
    path = user_path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(f"Cannot look at {path}: {error.strerror}.") from error
    return path


def write_file(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Put `content` (text as UTF-8) at `path` in one step, replacing a file that is there.

    Args:
        path: of the file.
        content: all of it.
        durable: it survives a power cut. Without, the file may then be damaged or missing, and
            whoever reads it must notice; it is written many times faster, and nothing is swept.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = beside(path)
    with _explained(path):
        if durable:
            sweep(path.parent)
        try:
            # "x" with the default mode: the umask decides the rights, as with any file of the user.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
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
        sweep(path.parent)
        temporary.mkdir()
    try:
        with _by_its_own_name(path, temporary):
            yield temporary
        with _explained(path):
            _sync_tree(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raise if the disk of a folder has no room for what is to be written there.

    Args:
        folder: that is written to; it need not be there yet.
        needed: bytes.
        what: is written, for the error.

    Raises:
        OutputError: there is no room.
    """
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(present).free
    if needed > free:
        raise OutputError(
            f"Cannot write {folder}: {what} takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB "
            f"are free on the disk of {present}. Make room, or choose a folder on another disk."
        )


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file; it becomes `path` when the block ends without an error.

    Missing parents of `path` are made.

    Raises:
        OutputError: something is at `path`, or it cannot be written.
    """
    refuse_existing(path)
    temporary = beside(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
    try:
        with _by_its_own_name(path, temporary):
            yield temporary
        with _explained(path):
            _sync(temporary, os.O_RDONLY)
            temporary.rename(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise if a new file at `path` would take the place of another; call it before long work."""
    if path.is_symlink() or path.exists():
        raise OutputError(f"{path} is there already. Choose another path, or remove it first.")


def refuse_occupied(path: Path) -> None:
    """Raise if a new folder at `path` would hide what is there; call it before long work."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is in the way: it is not a folder. Choose another path.")
    with _explained(path):
        if path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} is not empty. Choose another folder, or remove it first.")


def beside(path: Path) -> Path:
    """Name a temporary neighbour of `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_place()}{secrets.token_hex(4)}.tmp")


def sweep(folder: Path) -> None:
    """Remove what `beside` named in a folder for processes of this machine that have ended."""
    found: list[Path] = []
    # What cannot be listed cannot be swept; whether it can be written shows in a moment.
    with suppress(OSError):
        found += folder.iterdir()
    for path in found:
        match = re.fullmatch(r"\..+\.(\d+)-([0-9a-f]{8})[0-9a-f]{8}\.tmp", path.name)
        if match is None or match[2] != _place() or _is_alive(int(match[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


@functools.cache
def _place() -> str:
    """Tell apart where process ids are counted: another machine, or container, on a shared disk."""
    namespace = Path("/proc/self/ns/pid")
    counted_in = os.readlink(namespace) if namespace.is_symlink() else ""
    return f"{zlib.crc32(f'{platform.node()} {counted_in}'.encode()):08x}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


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


@contextmanager
def _by_its_own_name(path: Path, temporary: Path) -> Iterator[None]:
    """Speak of the folder the user asked for where an error speaks of the hidden one."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        if str(temporary) in str(error.filename) or error.errno in FULL:
            raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
        raise
