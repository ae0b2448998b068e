"""A user's own text: folders of text files, JSON Lines, parquet, and data sets from the hub.

What cannot be used is counted in `skipped` and left out: bytes that are no UTF-8, texts that are
empty. What is wrong as a whole is an error: no such file, no such column.
"""

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ziphius.core.errors import MissingExtraError
from ziphius.data.document import Document, fraction
from ziphius.data.errors import DataError

HUB = "hf:"
BAD_TEXT, EMPTY, DUPLICATE = "not UTF-8", "empty", "duplicate"
OTHER_FORMAT = "other format"
TABLES = (".jsonl", ".jsonl.gz", ".parquet")
NO_TEXT = (".json", ".csv", ".tsv", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar")
_COMPILED = (
    ".c",
    ".cc",
    ".cpp",
    ".cs",
    ".cu",
    ".go",
    ".h",
    ".hpp",
    ".java",
    ".kt",
    ".rs",
    ".scala",
)
_SCRIPTS = (".jl", ".js", ".lua", ".php", ".pl", ".py", ".r", ".rb", ".sh", ".sql", ".ts", ".tsx")
CODE = frozenset((*_COMPILED, *_SCRIPTS, ".swift"))
_INSTALL = "pip install 'ziphius[data]'"


def read_own(name: str, column: str, skipped: Counter[str]) -> Iterator[Document]:
    """Read a file, a folder of files, or `hf:NAME` (or `hf:NAME:SPLIT`)."""
    if name.startswith(HUB):
        yield from _texts(name, _hub_rows(name.removeprefix(HUB)), column, skipped)
        return
    for path in own_files(name):
        if path.name.endswith(TABLES):
            rows = _parquet_rows(path, column) if path.suffix == ".parquet" else _json_rows(path)
            yield from _texts(str(path), rows, column, skipped)
        elif not path.name.endswith(NO_TEXT):
            yield from read_file(path, str(path), skipped)
        elif path == Path(name):
            raise DataError(
                f"{name} is neither text, JSON Lines (.jsonl) nor parquet: make it one of them."
            )
        else:
            skipped[OTHER_FORMAT] += 1


def own_files(name: str) -> list[Path]:
    """List the files of a user's data in an order that does not put one folder before another."""
    path = Path(name)
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


def read_file(path: Path, key: str, skipped: Counter[str]) -> Iterator[Document]:
    """Read one file of text as one document; one that is not UTF-8 is counted and skipped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        skipped[BAD_TEXT] += 1
        return
    if text.strip():
        yield Document(key, text.replace("\r\n", "\n"), is_code=path.suffix in CODE)
    else:
        skipped[EMPTY] += 1


def _texts(
    origin: str, rows: Iterable[dict[str, Any] | None], column: str, skipped: Counter[str]
) -> Iterator[Document]:
    """Take one column out of rows; None stands for a row whose bytes are no UTF-8."""
    for number, row in enumerate(rows, start=1):
        if row is None:
            skipped[BAD_TEXT] += 1
            continue
        if column not in row:
            raise DataError(
                f"{origin}, row {number}: there is no column {column!r}. It has: "
                f"{', '.join(map(str, row))}. Name the right one with --data.column."
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{origin}, row {number}: the column {column!r} holds {type(text).__name__}, not "
                "text. Name another one with --data.column."
            )
        if text and text.strip():
            yield Document(f"{origin}:{number}", text)
        else:
            skipped[EMPTY] += 1


def _json_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield None
            continue
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no valid JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} holds no JSON object.")
        yield row


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole gzip file: {error}. Fetch it anew.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parquet_rows(path: Path, column: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path} needs pyarrow: {_INSTALL}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [column] if column in names else names
            for batch in file.iter_batches(batch_size=1_024, columns=wanted):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _hub_rows(name: str) -> Iterator[dict[str, Any]]:
    """Stream a data set by name; code that comes with one is never run."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"The data set {name} comes from the hub, which needs datasets: {_INSTALL}"
        ) from error
    dataset, _, split = name.partition(":")
    try:
        yield from datasets.load_dataset(dataset, split=split or "train", streaming=True)
    except Exception as error:  # the library passes on whatever its many back ends raise
        raise DataError(
            f"The data set {dataset} cannot be streamed from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Check the name and "
            "the network; without one, give a local folder, .jsonl or .parquet file instead."
        ) from error
