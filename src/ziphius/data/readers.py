"""What a user's own text is made of: which files, what each is, and which are no text of theirs.

What a file is, its content says (`data.kinds`). A folder that holds rows with text is a data set:
the rows are its text, and what lies beside them (a card, a licence, scripts, other tables) is not.
Of a folder without such rows all text is read, but not what is about the folder: its README and
licence. A file that is named itself is read whatever its name is.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ziphius.core.files import user_path
from ziphius.data.config import HUB
from ziphius.data.document import Document, fraction
from ziphius.data.errors import DataError
from ziphius.data.kinds import ROWS, Kind, json_document, kind_of
from ziphius.data.tables import read_rows
from ziphius.data.texts import read_notebook, read_pieces, rows_of_the_hub, texts_of

READING = 2
"""Raised when the same files would give other documents; old shards of them are then not used."""
BESIDE_ROWS, ABOUT = "beside rows", "about the data"
MOST_SHOWN = 20
"""Files of which each one is named."""

_ABOUT = re.compile(
    r"(?:readme|licen[cs]e|copying|notice|citation|dataset_?card|datasheet)(?:[^a-z].*)?", re.I
)


@dataclass(frozen=True)
class File:
    """A file of a user's, and what it was taken for."""

    path: Path
    kind: Kind
    left_out: str | None = None
    """Why it is not read, if it is not."""


class OwnText:
    """The text that one name stands for: a file, a folder, or `hf:NAME` (or `hf:NAME:SPLIT`).

    Args:
        name: what the user wrote.
        column: of the text, where there are rows.
        shuffled: with this seed, if only a part of it is wanted; for the hub alone, which is not
            read whole.
    """

    def __init__(self, name: str, column: str, shuffled: int | None = None) -> None:
        self.name, self.column, self._shuffled = name, column, shuffled

    @property
    def is_of_the_hub(self) -> bool:
        """Tell whether it comes over the network."""
        return self.name.startswith(HUB)

    @cached_property
    def files(self) -> list[File]:
        """Look at every file, in an order that does not put one folder before another."""
        paths = own_files(self.name)
        kinds = {path: kind_of(path) for path in paths}
        for path, kind in kinds.items():
            if kind == Kind.POINTER:
                raise DataError(f"{path} is {kind} and not the data: fetch them (git lfs pull).")
        if paths == [user_path(self.name)]:
            return [File(path, kind, _unreadable(kind)) for path, kind in kinds.items()]
        has_column = {path: self._has_column(path, kind) for path, kind in kinds.items()}
        with_text = {kinds[path] for path, has in has_column.items() if has}
        return [
            File(path, kind, _reason(path, kind, has_column[path], with_text, self.column))
            for path, kind in kinds.items()
        ]

    def read(self, skipped: Counter[str]) -> Iterator[Document]:
        """Yield its documents; count in `skipped` what is left out on the way."""
        if self.is_of_the_hub:
            rows = rows_of_the_hub(self.name.removeprefix(HUB), self._shuffled)
            yield from texts_of(self.name, rows, self.column, skipped)
            return
        for file in self.files:
            if file.left_out is not None:
                skipped[file.left_out] += 1
            elif file.kind in ROWS:
                found = read_rows(file.path, file.kind, (self.column,))
                yield from texts_of(str(file.path), found, self.column, skipped)
            elif file.kind == Kind.NOTEBOOK:
                yield from read_notebook(file.path, skipped)
            else:
                yield from read_pieces(file.path, skipped, is_code=file.kind == Kind.CODE)

    def _has_column(self, path: Path, kind: Kind) -> bool | None:
        """Tell whether a file's rows have the column; None without rows."""
        if kind not in ROWS:
            return None
        if kind == Kind.JSON:
            document = json_document(path)
            rows = document if isinstance(document, list) else [document]
            return any(isinstance(row, dict) and self.column in row for row in rows)
        first = next(
            (row for row in read_rows(path, kind, (self.column,)) if row is not None), None
        )
        return None if first is None else self.column in first


def read_own(name: str, column: str, skipped: Counter[str]) -> Iterator[Document]:
    """Read a file, a folder of files, or `hf:NAME` (or `hf:NAME:SPLIT`)."""
    yield from OwnText(name, column).read(skipped)


def _unreadable(kind: Kind) -> str | None:
    return str(kind) if kind in (Kind.BINARY, Kind.NOT_UTF8) else None


def _reason(
    path: Path, kind: Kind, has_column: bool | None, with_text: set[Kind], column: str
) -> str | None:
    """Say why a file of a folder is not read; None if it is, or if reading it is an error.

    An error are rows without the column, if others of their kind have it or nobody has. Settings
    are often JSON, and lists of files CSV: those alone make no data set.
    """
    if reason := _unreadable(kind):
        return reason
    if kind in ROWS:
        is_data = kind in with_text or (not with_text and kind not in (Kind.JSON, Kind.CSV))
        return None if has_column is not False or is_data else f"{kind} without {column!r}"
    if with_text:
        return BESIDE_ROWS
    return ABOUT if _ABOUT.fullmatch(path.name) else None


def own_files(name: str) -> list[Path]:
    """List the files of a user's data in an order that does not put one folder before another."""
    path = user_path(name)
    if not path.exists():
        raise DataError(
            f"There is no {name}. Give a file, a folder, or {HUB}NAME for a data set of the hub."
        )
    if path.is_file():
        return [path]
    files = list(_visible_files(path))
    if not files:
        raise DataError(f"The folder {name} holds no files.")
    return sorted(files, key=lambda file: fraction(str(file.relative_to(path))))


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"The folder {error.filename} cannot be read: {error.strerror}. Change its rights, or "
            "name what lies beside it instead of the folder around it."
        ) from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file())


def described(files: Sequence[File]) -> Iterator[str]:
    """Say what each file was taken for; of many, those left out first and the rest by kind."""
    ordered = sorted(files, key=lambda file: (file.left_out is None, str(file.path)))
    for file in ordered[:MOST_SHOWN]:
        how = f"left out: {file.left_out}" if file.left_out else f"read as {file.kind}"
        yield f"{file.path}: {how}"
    rest = Counter(file.left_out or str(file.kind) for file in ordered[MOST_SHOWN:])
    if rest:
        counted = ", ".join(f"{count:,} {what}" for what, count in rest.items())
        yield f"and {len(ordered) - MOST_SHOWN:,} more: {counted}"
