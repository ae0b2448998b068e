"""Prompts from a file: texts, one on each line, or rows of JSON or a table."""

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ziphius.core.errors import ChatError, ConfigError
from ziphius.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ziphius.data.json_rows import Row
    from ziphius.text.chat import Message

SHAPE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
_COLUMNS = ("prompt", "messages", "id", "sampling_params", "adapter", "tools")
_JSON = (".jsonl", ".ndjson", ".json", ".jsonlines")
_HEAD = 1 << 16


@dataclass(frozen=True)
class PromptRow:
    """One prompt: a text, or a conversation to answer; or what is wrong with it."""

    number: int
    """Among all rows, bad ones too, from 0."""
    where: str
    """File and line, for errors."""
    text: str = ""
    messages: "tuple[Message, ...]" = ()
    name: Any = None
    """What the file calls it (`id`), to be written beside the answer."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SamplingParams` that differ from those of the command."""
    adapter: str | None = None
    """None is that of the command."""
    problem: str | None = None


class PromptFile(NamedTuple):
    """The rows of a file, and the SHA-256 of its bytes."""

    rows: list[PromptRow]
    sha256: str


def read_prompts(path: Path) -> PromptFile:
    """Read a file of prompts; - is standard input, and empty lines count for nothing.

    A file that is named as JSON, or whose first line is a JSON object, has rows as `SHAPE` says;
    beside them `id`, `sampling_params` and `adapter` count and other keys do not. So has a table
    (parquet, Arrow). Every other file has a text on each line.

    Raises:
        ConfigError: the file holds no prompts, or text that is not UTF-8.
        DataError: the file cannot be read.
    """
    from ziphius.data.json_rows import json_rows
    from ziphius.data.kinds import table_kind
    from ziphius.data.row_files import rows_of_files

    name = "standard input" if str(path) == "-" else str(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file of prompts.")
    piped = _piped(path)
    is_table = piped is None and table_kind(path) is not None
    if is_table or _is_json(path, piped):
        if piped is not None:
            found = json_rows(name, io.BufferedReader(io.BytesIO(piped)))
        else:
            found = (row for _, rows in rows_of_files(path, _COLUMNS) for row in rows)
        rows = [_row(number, row) for number, row in enumerate(found)]
    else:
        rows = list(_texts(name, path, piped))
    if not rows:
        raise ConfigError(f"{name} holds no prompts: give one on each line.")
    if all(row.problem for row in rows):
        raise ConfigError(f"{name} holds no prompts. {rows[0].where}: {rows[0].problem}")
    return PromptFile(rows, _digest(path, piped))


def _piped(path: Path) -> bytes | None:
    """Read what can be read once alone: standard input, or a pipe such as <(...) of a shell."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes() if path.exists() and not path.is_file() else None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _stream(path: Path, piped: bytes | None) -> Iterator[Any]:
    from ziphius.data.kinds import opened

    if piped is not None:
        yield io.BytesIO(piped)
        return
    with opened(path) as file:
        yield file


def _is_json(path: Path, piped: bytes | None) -> bool:
    if piped is None and any(suffix.lower() in _JSON for suffix in path.suffixes[-2:]):
        return True
    with _stream(path, piped) as stream:
        head: bytes = stream.read(_HEAD)
    text = head.decode("utf-8-sig", "ignore").lstrip()
    try:
        return isinstance(json.loads(text.partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        # Of a line that is longer than the head, the beginning must do.
        return len(head) == _HEAD and "\n" not in text and text.startswith('{"')


def _texts(name: str, path: Path, piped: bytes | None) -> Iterator[PromptRow]:
    with _stream(path, piped) as stream:
        content: bytes = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text: {error}.") from error
    lines = (line for line in enumerate(text.split("\n"), start=1) if line[1].strip())
    for number, (line, words) in enumerate(lines):
        yield PromptRow(number, f"{name}, line {line}", words.removesuffix("\r"))


def _digest(path: Path, piped: bytes | None) -> str:
    if piped is not None:
        return hashlib.sha256(piped).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(number: int, row: "Row") -> PromptRow:
    try:
        if row.problem is not None:
            raise ConfigError(row.problem)
        return _asked(number, row.where, row.data)
    except (ChatError, ConfigError) as error:
        name = row.data.get("id") if isinstance(row.data, dict) else None
        return PromptRow(number, row.where, name=name, problem=str(error))


def _asked(number: int, where: str, entry: Any) -> PromptRow:
    from ziphius.data.messages import messages_of, unicode

    text = ""
    turns: list[Any] = []
    match entry:
        case {"prompt": _, "messages": _}:
            raise ConfigError("has a prompt and messages: give one of them.")
        case {"prompt": str(text)}:
            pass
        case {"prompt": [_, *_] as turns} | {"messages": [_, *_] as turns}:
            pass
        case _:
            raise ConfigError(f"must be {SHAPE}.")
    if entry.get("tools"):
        raise ConfigError("prompts of a file have no tools: leave them out.")
    if beside := sorted(entry.keys() & SamplingParams.model_fields.keys()):
        raise ConfigError(
            f"has {', '.join(beside)} beside the prompt: settings count inside of "
            '"sampling_params": {...} alone. Move or rename it.'
        )
    params = entry.get("sampling_params") or {}
    if not isinstance(params, dict):
        raise ConfigError('"sampling_params" must be an object of settings by name.')
    adapter = entry.get("adapter")
    if not isinstance(adapter, str | None):
        raise ConfigError('"adapter" must be a name.')
    messages = messages_of(turns) if turns else ()
    return PromptRow(number, where, unicode(text), messages, entry.get("id"), params, adapter)
