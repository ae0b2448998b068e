"""Prompts from a file: one on each line, as text or as JSON."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.core.errors import ChatError, ConfigError

if TYPE_CHECKING:
    from ziphius.text.chat import Message

_SHAPE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Asked:
    """One prompt: a text, or a conversation to answer."""

    text: str = ""
    messages: "tuple[Message, ...]" = ()
    name: Any = None
    """What the file calls it (`id`), to be written beside the answer."""


def read_prompts(path: Path) -> list[Asked]:
    """Read a file of prompts; - is standard input, and empty lines count for nothing.

    A file whose first line is a JSON object is JSON Lines: see `_SHAPE`, with an `id` if it has
    any. Every other one has a text on each line.

    Raises:
        ConfigError: the file cannot be read, or a line has another shape.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error
    numbered = enumerate(text.split("\n"), start=1)
    lines = [(number, line.removesuffix("\r")) for number, line in numbered if line.strip()]
    if not lines:
        raise ConfigError(f"{path} holds no prompts: give one on each line.")
    if not (isinstance(_json(lines[0][1]), dict) or path.suffix.lower() in (".jsonl", ".ndjson")):
        return [Asked(line) for _, line in lines]
    return [_asked(_json(line), f"{path}, line {number}") for number, line in lines]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _asked(entry: Any, where: str) -> Asked:
    match entry:
        case {"prompt": str(text), "messages": _}:
            raise ConfigError(f"{where}: has a prompt and messages: give one of them.")
        case {"prompt": str(text)}:
            return Asked(text, name=entry.get("id"))
        case {"messages": [_, *_] as messages}:
            if entry.get("tools"):
                raise ConfigError(f"{where}: prompts of a file have no tools: leave them out.")
            return Asked(messages=_messages(messages, where), name=entry.get("id"))
        case _:
            raise ConfigError(f"{where}: must be {_SHAPE}.")


def _messages(turns: list[Any], where: str) -> "tuple[Message, ...]":
    from ziphius.data.messages import messages_of

    try:
        return messages_of(turns)
    except ChatError as error:
        raise ConfigError(f"{where}: {error}") from error
