"""Rows of the files that have some: JSON Lines, JSON, CSV, parquet, Arrow. Read in a stream."""

import csv
import io
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ziphius.core.errors import MissingExtraError
from ziphius.data.errors import DataError
from ziphius.data.kinds import INSTALL, Kind, explained, json_document, opened, plain_suffix

Row = dict[str, Any]
ROWS_AT_ONCE = 1_024


def read_rows(path: Path, kind: Kind, columns: Collection[str]) -> Iterator[Row | None]:
    """Yield the rows of a file; None where one is no UTF-8. Of tables see `table_rows`.

    Raises:
        DataError: the file is damaged, or holds no rows.
        MissingExtraError: a package that reads it is not there.
    """
    match kind:
        case Kind.JSON_LINES:
            return _json_lines(path)
        case Kind.JSON:
            return iter(json_rows(path))
        case Kind.CSV:
            return _csv(path)
        case _:
            return table_rows(path, kind, columns)


def table_rows(path: Path, kind: Kind, columns: Collection[str]) -> Iterator[Row]:
    """Yield the rows of a parquet or Arrow file: the wanted columns, or all if it has none of them.

    Raises:
        DataError: the file is damaged.
        MissingExtraError: pyarrow is not there.
    """
    return _parquet(path, columns) if kind == Kind.PARQUET else _arrow(path, columns)


def json_rows(path: Path) -> list[Row]:
    """Read a JSON document that is a list of objects, or one object.

    Raises:
        DataError: it is neither.
    """
    document = json_document(path)
    rows = [document] if isinstance(document, dict) else document
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise DataError(
            f"{path} is neither JSON Lines nor a JSON list of objects that can be read whole: make "
            "it JSON Lines, an object with the text on each line."
        )
    return rows


def _json_lines(path: Path) -> Iterator[Row | None]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
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


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than the default allows
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            separator = "\t" if plain_suffix(path) == ".tsv" else ","
            for row in csv.DictReader(text, delimiter=separator, strict=True):
                yield {str(name): value for name, value in row.items() if name is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV: {error}.") from error
        finally:
            text.detach()


def _parquet(path: Path, columns: Collection[str]) -> Iterator[Row]:
    pyarrow = _pyarrow(path)
    with _table_errors(path, Kind.PARQUET), pyarrow.parquet.ParquetFile(path) as file:
        wanted = _wanted(file.schema_arrow.names, columns)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
            yield from batch.to_pylist()


def _arrow(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Read both forms of Arrow files: the one with an index and the stream that datasets writes."""
    pyarrow = _pyarrow(path)
    with _table_errors(path, Kind.ARROW), explained(path), pyarrow.memory_map(str(path)) as file:
        is_indexed = file.read(6) == b"ARROW1"
        file.seek(0)
        source = pyarrow.ipc.open_file(file) if is_indexed else pyarrow.ipc.open_stream(file)
        count = source.num_record_batches if is_indexed else None
        batches = source if count is None else (source.get_batch(i) for i in range(count))
        for batch in batches:
            chosen = batch.select(_wanted(batch.schema.names, columns))
            for first in range(0, chosen.num_rows, ROWS_AT_ONCE):
                yield from chosen.slice(first, ROWS_AT_ONCE).to_pylist()


def _wanted(names: list[str], columns: Collection[str]) -> list[str]:
    return [name for name in names if name in columns] or names


@contextmanager
def _table_errors(path: Path, kind: Kind) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as {kind}: {error}") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path} needs pyarrow: {INSTALL}") from error
    return pyarrow
