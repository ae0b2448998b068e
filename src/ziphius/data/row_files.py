"""Rows of conversation files as people have them: JSON, parquet and arrow, packed or in folders.

What a file is, its first bytes say and not its name; in a folder the name decides which files are
meant. Packed files are unpacked as they are read.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ziphius.core.errors import MissingExtraError
from ziphius.data.config import HUB
from ziphius.data.errors import DataError
from ziphius.data.json_rows import BLOCK, Row, json_rows
from ziphius.data.readers import own_files
from ziphius.data.texts import rows_of_the_hub

GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"
PARQUET, ARROW = b"PAR1", b"\xff\xff\xff\xff"
BATCH = 256
"""Rows of a table in memory at a time."""
_DATA = re.compile(r".*\.(jsonl|ndjson|json|parquet|arrow)(\.(gz|bz2|xz|zst|zstd))?", re.IGNORECASE)
_ABOUT = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""What the datasets library writes beside the rows."""
_INSTALL = "pip install 'ziphius[data]'"


def read_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Read a file, all files of a folder, or `hf:NAME` (or `hf:NAME:SPLIT`) row by row.

    Args:
        path: what the user named.
        columns: the columns of tables that are wanted; all of a table that has none of them.

    Raises:
        DataError: there is no such file, or it is damaged.
        MissingExtraError: what reads such files is not installed.
    """
    name = str(path)
    if name.startswith(HUB):
        yield from _hub_rows(name)
        return
    for file in conversation_files(path):
        yield from _file_rows(file, columns)


def conversation_files(path: Path) -> list[Path]:
    """List the file, or those of a folder that may hold rows, in a fixed order."""
    if not path.is_dir():
        return [path]
    files = own_files(str(path))
    meant = [file for file in files if _DATA.fullmatch(file.name) and file.name not in _ABOUT]
    if not meant:
        raise DataError(
            f"The folder {path} holds no conversations, only {_some(files)}. Name a file, or a "
            "folder with .jsonl, .json, .parquet or .arrow files, packed or not."
        )
    return meant


def _some(files: list[Path]) -> str:
    names = sorted(file.name for file in files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _file_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    with _named(path), ExitStack() as stack:
        file = stack.enter_context(_open(path))
        head = file.read(8)
        file.seek(0)
        if head.startswith(PARQUET):
            yield from _table_rows(path, _parquet(path, file, columns))
        elif head.startswith(ARROW):
            yield from _table_rows(path, _arrow(path, file))
        else:
            stream = stack.enter_context(_unpacked(path, file, head))
            yield from json_rows(str(path), stream)


def _open(path: Path) -> BinaryIO:
    if not path.exists() and not path.is_symlink() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise DataError(
            f"{path} cannot be read: there is no such file. For a data set of the Hugging Face "
            f"hub give {HUB}{path}, or fetch it first: hf download --repo-type dataset {path} "
            "--local-dir FOLDER, and give the folder."
        )
    return path.open("rb")


def _unpacked(path: Path, file: BinaryIO, head: bytes) -> io.BufferedReader:
    """Return the bytes inside a packed file, those of any other as they are."""
    raw: Any = file
    if head.startswith(GZIP):
        raw = gzip.GzipFile(fileobj=file)
    elif head.startswith(BZIP2):
        raw = bz2.BZ2File(file)
    elif head.startswith(XZ):
        raw = lzma.LZMAFile(file)  # noqa: SIM115
    elif head.startswith(ZSTD):
        raw = _pyarrow(path).input_stream(str(path), compression="zstd")
    return io.BufferedReader(raw, BLOCK)


def _parquet(path: Path, file: BinaryIO, columns: Collection[str]) -> Iterator[Any]:
    _pyarrow(path)
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    wanted = [name for name in table.schema_arrow.names if name in columns]
    yield from table.iter_batches(batch_size=BATCH, columns=wanted or None)


def _arrow(path: Path, file: BinaryIO) -> Iterator[Any]:
    _pyarrow(path)
    import pyarrow.ipc

    for batch in pyarrow.ipc.open_stream(file):
        yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))


def _table_rows(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for data in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", without_padding(data))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error


def without_padding(value: Any) -> Any:
    """Drop the keys without a value: a table has every key of any row in each of its rows."""
    if isinstance(value, dict):
        return {key: without_padding(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_padding(entry) for entry in value]
    return value


def _hub_rows(name: str) -> Iterator[Row]:
    for number, data in enumerate(rows_of_the_hub(name.removeprefix(HUB), None), 1):
        yield Row(f"{name}, row {number}", without_padding(data))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(f"Reading {path} needs pyarrow: {_INSTALL}") from error
    return cast(Any, pyarrow)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged or cut off: {error}. Fetch it anew.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
