"""Conversations from JSON Lines: `{"messages": [...], "tools": [...]}`, the OpenAI API's shape.

A line that cannot be used is an error that names file and line, because a conversation that is
dropped without a word is one that nobody learns from. Keys beside `messages` and `tools` are the
user's own; inside a message every key counts, so an unknown one is an error too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.core.errors import ChatError
from ziphius.data.document import fraction
from ziphius.data.errors import DataError
from ziphius.text.chat import Message, Tool, ToolCall

MESSAGE_KEYS = frozenset(("role", "content", "reasoning_content", "tool_calls", "tool_call_id"))


@dataclass(frozen=True)
class Conversation:
    """Messages to learn from, and the tools they were written with."""

    where: str
    """File and line, for errors."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Read a file of one conversation per line; empty lines count for nothing.

    Raises:
        DataError: naming file and line: no JSON, no messages, a message that no role can say, or
            no assistant to learn from.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    is_empty = True
    for number, line in enumerate(lines, 1):
        if line.strip():
            is_empty = False
            yield _conversation(line, f"{path}, line {number}")
    if is_empty:
        raise DataError(f"{path} holds no conversations: give one JSON object on each line.")


def split_held_out(
    conversations: Iterable[Conversation], share: float
) -> tuple[list[Conversation], list[Conversation]]:
    """Take a share away for validation, by what the messages say.

    Copies of a conversation fall on one side, wherever they stand and whatever comes beside them.
    """
    learned: list[Conversation] = []
    held_out: list[Conversation] = []
    for conversation in conversations:
        is_out = fraction("held out", repr(conversation.messages)) < share
        (held_out if is_out else learned).append(conversation)
    return learned, held_out


def _conversation(line: bytes, where: str) -> Conversation:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: no UTF-8.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: no JSON: {error}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        raise DataError(f'{where}: must be {{"messages": [...]}}.')
    try:
        messages = tuple(map(_message, data["messages"]))
        tools = tuple(map(_tool, _list_of(data, "tools")))
    except ChatError as error:
        raise DataError(f"{where}: {error}") from error
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{where}: has no assistant message, so there is nothing to learn.")
    return Conversation(where, messages, tools)


def _message(data: Any) -> Message:
    entry = _object(data, "A message")
    if unknown := sorted(entry.keys() - MESSAGE_KEYS):
        raise ChatError(
            f"A message has the unknown key {unknown[0]!r}; known are "
            f"{', '.join(sorted(MESSAGE_KEYS))}."
        )
    return Message(
        role=entry.get("role", ""),
        content=_text(entry.get("content")),
        reasoning_content=entry.get("reasoning_content"),
        tool_calls=tuple(map(_tool_call, _list_of(entry, "tool_calls"))),
        tool_call_id=entry.get("tool_call_id"),
    )


def _text(content: Any) -> str:
    """Join the text parts of a content; None, as beside tool calls, is empty."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [_object(part, "A part of a content") for part in content]
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    raise ChatError("The content of a message must be text, or a list of text parts.")


def _tool_call(data: Any) -> ToolCall:
    function = _function(data, "A tool call")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(_name(function, "A tool call"), arguments, data.get("id"))


def _tool(data: Any) -> Tool:
    function = _function(data, "A tool")
    parameters = function.get("parameters")
    return Tool(
        _name(function, "A tool"),
        str(function.get("description") or ""),
        None if parameters is None else _object(parameters, "The parameters of a tool"),
    )


def _function(data: Any, what: str) -> Mapping[str, Any]:
    return _object(_object(data, what).get("function"), f"The `function` of {what.lower()}")


def _name(function: Mapping[str, Any], what: str) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise ChatError(f"{what} has no name.")
    return name


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ChatError(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value


def _list_of(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = data.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ChatError(f"`{key}` must be a list, not {type(value).__name__}.")
    return value
