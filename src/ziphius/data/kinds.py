"""What a file of text is, by its content: names lie, and many data sets have names of their own.

A name decides only where content cannot: whether text with commas is a table, which language code
is in, and what an empty or damaged file was meant to be.
"""

import gzip
import io
import json
import lzma
import zlib
from bz2 import BZ2File
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, cast

from ziphius.core.errors import MissingExtraError
from ziphius.data.errors import DataError

INSTALL = "pip install 'ziphius[data]'"
HEAD_BYTES = 1 << 16
LONGEST_DOCUMENT = 1 << 30
"""Bytes of a JSON document, or of one line, which are read whole."""


class Kind(StrEnum):
    """What a file is taken for, in the words that users read."""

    TEXT = "text"
    CODE = "code"
    NOTEBOOK = "notebook"
    JSON_LINES = "JSON Lines"
    JSON = "JSON"
    CSV = "CSV"
    PARQUET = "parquet"
    ARROW = "Arrow"
    NOT_UTF8 = "not UTF-8"
    BINARY = "binary"
    POINTER = "a pointer of Git LFS"


ROWS = frozenset((Kind.JSON_LINES, Kind.JSON, Kind.CSV, Kind.PARQUET, Kind.ARROW))
"""Kinds that hold rows, of which one column is text."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
}
_ENDINGS = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_BY_MAGIC = {
    b"PAR1": Kind.PARQUET,
    b"ARROW1": Kind.ARROW,
    b"\xff\xff\xff\xff": Kind.ARROW,
    b"%PDF": Kind.BINARY,
    b"version https://git-lfs": Kind.POINTER,
}
_BY_NAME = {
    ".parquet": Kind.PARQUET,
    ".arrow": Kind.ARROW,
    ".feather": Kind.ARROW,
    ".jsonl": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".jsonlines": Kind.JSON_LINES,
    ".json": Kind.JSON,
    ".ipynb": Kind.NOTEBOOK,
    ".csv": Kind.CSV,
    ".tsv": Kind.CSV,
}
_COMPILED = ".c .cc .cpp .cs .cu .go .h .hpp .java .kt .rs .scala .swift"
_SCRIPTS = ".jl .js .lua .php .pl .py .r .rb .sh .sql .ts .tsx"
CODE = frozenset(f"{_COMPILED} {_SCRIPTS}".split())


def kind_of(path: Path) -> Kind:
    """Tell what a file is.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    by_name = _BY_NAME.get(plain_suffix(path))
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    for magic, kind in _BY_MAGIC.items():
        if head.startswith(magic):
            return kind
    begins_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    if begins_json and b"\0" not in head:
        return _kind_of_json(path, by_name)
    if not is_utf8(head):
        damaged = by_name in (Kind.PARQUET, Kind.ARROW, Kind.JSON_LINES)
        return by_name if by_name and damaged else Kind.NOT_UTF8
    if b"\0" in head:
        return Kind.BINARY
    if by_name is not None and by_name != Kind.NOTEBOOK:
        return by_name
    return Kind.CODE if plain_suffix(path) in CODE else Kind.TEXT


def table_kind(path: Path) -> Kind | None:
    """Tell whether a file is a table of columns, by its first bytes alone.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    with opened(path) as file:
        head = file.read(8)
    tables = (kind for magic, kind in _BY_MAGIC.items() if head.startswith(magic))
    return next((kind for kind in tables if kind in (Kind.PARQUET, Kind.ARROW)), None)


def _kind_of_json(path: Path, by_name: Kind | None) -> Kind:
    """Tell what begins with a bracket: rows, a document, or a text that only looks like it."""
    with opened(path) as file:
        lines = (
            line for line in iter(lambda: file.readline(LONGEST_DOCUMENT), b"") if line.strip()
        )
        first, is_only_line = next(lines), next(lines, None) is None
    value = json_value(first)
    if by_name == Kind.JSON_LINES or (isinstance(value, dict) and not is_only_line):
        return Kind.JSON_LINES
    document = value if is_only_line else json_document(path)
    if is_notebook(document):
        return Kind.NOTEBOOK
    if isinstance(document, dict | list) or by_name in (Kind.JSON, Kind.NOTEBOOK):
        return Kind.JSON
    if by_name is not None:
        return by_name
    return Kind.CODE if plain_suffix(path) in CODE else Kind.TEXT


def plain_suffix(path: Path) -> str:
    """Return the ending of a name in small letters, without that of a compression."""
    name = path.name.lower()
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return Path(name).suffix


def is_utf8(head: bytes) -> bool:
    """Tell whether bytes are the beginning of a text in UTF-8."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) - error.start < 4 and error.reason == "unexpected end of data"
    return True


def json_value(content: bytes) -> Any:
    """Read JSON; None for what is none."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def json_document(path: Path) -> Any:
    """Read a whole file as JSON; None for what is none, or too long to be read whole."""
    with opened(path) as file:
        content = file.read(LONGEST_DOCUMENT + 1)
    return None if len(content) > LONGEST_DOCUMENT else json_value(content)


def is_notebook(value: Any) -> bool:
    """Tell whether a JSON document is a Jupyter notebook."""
    return isinstance(value, dict) and isinstance(value.get("cells"), list) and "nbformat" in value


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked where its first bytes say that it is compressed.

    Raises:
        DataError: it cannot be read, or its compressed content is damaged.
        MissingExtraError: unpacking it needs a package that is not there.
    """
    with explained(path), path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        how = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
        with _unpacked(raw, how, path) as file:
            yield file


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name the file in what reading it raises."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole compressed file: {error}. Fetch it anew.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _unpacked(raw: IO[bytes], how: str | None, path: Path) -> Iterator[IO[bytes]]:
    match how:
        case None:
            yield raw
        case "gzip":
            with gzip.open(raw) as file:
                yield cast(IO[bytes], file)
        case "bz2":
            with BZ2File(raw) as packed:
                yield packed
        case "xz":
            with lzma.open(raw) as other:
                yield other
        case _:
            try:
                import pyarrow
            except ImportError as error:
                raise MissingExtraError(f"Unpacking {path} needs pyarrow: {INSTALL}") from error
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), how)
            with io.BufferedReader(stream) as buffered:
                yield buffered
