"""Rows of conversation files as people have them: JSON, parquet and arrow, packed or in folders.

What a file is, its first bytes say and not its name; in a folder the name decides which files are
meant. Packed files are unpacked as they are read.
"""

import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from ziphius.data.config import HUB
from ziphius.data.errors import DataError
from ziphius.data.json_rows import BLOCK, Row, json_rows
from ziphius.data.kinds import opened, table_kind
from ziphius.data.readers import own_files
from ziphius.data.tables import table_rows
from ziphius.data.texts import rows_of_the_hub

_DATA = re.compile(r".*\.(jsonl|ndjson|json|parquet|arrow)(\.(gz|bz2|xz|zst|zstd))?", re.IGNORECASE)
_ABOUT = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""What the datasets library writes beside the rows."""


def conversation_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Read a file, all files of a folder, or `hf:NAME` (or `hf:NAME:SPLIT`) row by row.

    Args and errors are those of `rows_of_files`.
    """
    for _, rows in rows_of_files(path, columns):
        yield from rows


def rows_of_files(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Iterator[Row]]]:
    """Read a file, all files of a folder, or `hf:NAME` (or `hf:NAME:SPLIT`), each row by row.

    Args:
        path: what the user named.
        columns: the columns of tables that are wanted; all of a table that has none of them.

    Raises:
        DataError: there is no such file, or it is damaged.
        MissingExtraError: what reads such files is not installed.
    """
    name = str(path)
    if name.startswith(HUB):
        yield name, _hub_rows(name)
        return
    for file in conversation_files(path):
        yield str(file), _file_rows(file, columns)


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
    _refuse_hub_name(path)
    kind = table_kind(path)
    if kind is not None:
        for number, data in enumerate(table_rows(path, kind, columns), 1):
            yield Row(f"{path}, row {number}", without_padding(data))
        return
    with opened(path) as file, io.BufferedReader(cast(Any, file), BLOCK) as stream:
        yield from json_rows(str(path), stream)


def _refuse_hub_name(path: Path) -> None:
    if not path.exists() and not path.is_symlink() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise DataError(
            f"{path} cannot be read: there is no such file. For a data set of the Hugging Face "
            f"hub give {HUB}{path}, or fetch it first: hf download --repo-type dataset {path} "
            "--local-dir FOLDER, and give the folder."
        )


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
