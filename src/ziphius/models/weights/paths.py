"""Opening files that somebody else wrote: plain files inside the model folder and nothing else.

A name in a downloaded index can point anywhere ("../../x", a link to /etc), and opening a pipe
blocks for ever; both are refused before the file is opened.
"""

import stat
from pathlib import Path

from ziphius.core.errors import CheckpointError


def regular_file(path: Path) -> Path:
    """Return `path` if it is an ordinary file; raise CheckpointError for anything else."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        message = f"{path} does not exist (or is a link to nothing)."
        raise CheckpointError(message) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be opened: {error}.") from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is not a regular file but a folder, pipe or device.")
    return path


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a model folder names, after checking that it stays inside.

    Links may lead to other places of the folder, and in a Hugging Face cache, where
    `snapshots/<revision>/` holds links only, to the `blobs` beside it.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise CheckpointError(
            f"{folder} names the file {name!r}: only plain names inside the folder are read."
        )
    path = regular_file(folder / name)
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path} is a link that leaves the model folder (to {path.resolve()}). "
            "Copy the file into the folder if you trust it."
        )
    return path
