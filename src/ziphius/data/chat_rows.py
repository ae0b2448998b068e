"""The shapes in which people keep conversations, each turned into messages of one shape.

    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}       OpenAI
    {"conversations": [{"from": "human", "value": ...}, ...]}                ShareGPT
    {"prompt": ..., "completion": ...}, or "response"                        text, or messages
    {"instruction": ..., "input": ..., "output": ...}                        Alpaca, Dolly
    {"question": ..., "answer": ...}, {"query": ..., "response": ...}
    {"text": ...}                                                            running text

A key without a value is no key: tables have all of them in every row. Keys that no shape knows are
the user's own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ziphius.core.errors import ChatError

TURNS = ("messages", "conversations", "conversation")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
"""Keys of a question and of its answer."""
EXTRAS = ("input", "context")
"""Keys of what an instruction is about."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
OTHERS = ("history", "text", "chosen", "rejected")
COLUMNS = frozenset(
    (*TURNS, *(key for pair in PAIRS for key in pair), *EXTRAS, *SYSTEM, *TOOLS, *OTHERS)
)
"""All keys that mean something here."""
ROLES: dict[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
"""Other words for the roles."""
_KNOWN = (
    '{"messages": [...]}, {"conversations": [...]}, {"prompt": ..., "completion": ...}, '
    '{"instruction": ..., "output": ...} or {"text": ...}'
)


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A row in the one shape that is read further: roles and contents under OpenAI's keys."""

    messages: Sequence[Mapping[str, Any]] = ()
    tools: Any = None
    prompt: int = 0
    """Messages at the front that are a prompt and not learned, whoever wrote them."""
    text: str | None = None
    """Running text instead of messages."""


def chat_row(row: Any) -> ChatRow:
    """Find out which shape a row has.

    Raises:
        ChatError: it has none of those known, or two that say different things.
    """
    if not isinstance(row, dict):
        raise ChatError(f"must be a JSON object such as {_KNOWN}, not {type(row).__name__}.")
    data = {key: value for key, value in row.items() if value is not None}
    tools = next((data[key] for key in TOOLS if key in data), None)
    messages, prompt = _messages(data)
    if messages:
        whole = _with_system(data, messages)
        return ChatRow(whole, tools, prompt + len(whole) - len(messages) if prompt else 0)
    if "text" in data:
        return ChatRow(text=_string(data, "text"))
    raise ChatError(_unknown(row, data))


def _messages(data: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], int]:
    for key in TURNS:
        if key in data:
            turns = entries(data[key], f"must be {_KNOWN}: `{key}`")
            if not turns:
                raise ChatError(f"`{key}` is empty, so there is nothing to learn.")
            return [_message(turn) for turn in turns], 0
    pairs = [(ask, answer) for ask, answer in PAIRS if ask in data and answer in data]
    if not pairs:
        return [], 0
    if len({repr(data[answer]) for _, answer in pairs}) > 1:
        names = ", ".join(dict.fromkeys(answer for _, answer in pairs))
        raise ChatError(f"has several answers ({names}): leave one, or give messages.")
    ask, answer = pairs[0]
    before = [*_history(data), *_side(data[ask], ask, "user", _extra(data, ask))]
    return [*before, *_side(data[answer], answer, "assistant")], _given(data[ask], len(before))


def _given(ask: Any, count: int) -> int:
    """Count the messages of a prompt that is a conversation itself; its answers are given."""
    return 0 if isinstance(ask, str) else count


def _history(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Read earlier questions and answers, as pairs."""
    found: list[Mapping[str, Any]] = []
    for pair in entries(data.get("history"), "`history`"):
        if not (isinstance(pair, list) and [type(text) for text in pair] == [str, str]):
            raise ChatError("`history` must be a list of pairs of texts.")
        found += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return found


def _extra(data: Mapping[str, Any], ask: str) -> str:
    """Return what an instruction is about, as the lines after it."""
    extras = [_string(data, key) for key in EXTRAS if key in data and key != ask]
    return "".join(f"\n{extra}" for extra in extras if extra) if ask != "prompt" else ""


def _side(value: Any, key: str, role: str, extra: str = "") -> list[Mapping[str, Any]]:
    """Read one side of a pair: a text, or messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value + extra}]
    if extra:
        raise ChatError(f"`{key}` must be text, not {type(value).__name__}.")
    return [_message(entry) for entry in entries(value, f"`{key}`")]


def _message(entry: Any) -> Mapping[str, Any]:
    """Give a message OpenAI's keys and its roles their usual names."""
    if not isinstance(entry, dict):
        raise ChatError(f"A message must be a JSON object, not {type(entry).__name__}.")
    message = {key: value for key, value in entry.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        message["content"] = message.pop("value", None)
    role = message.get("role")
    if not isinstance(role, str):
        raise ChatError(f"A message has no role, only {', '.join(map(str, entry)) or 'nothing'}.")
    if role == "function_call":
        calls = message.pop("content", None)
        message |= {"role": "assistant", "tool_calls": _calls(calls)}
    else:
        message["role"] = ROLES.get(role, role)
    return message


def _calls(value: Any) -> list[Any]:
    """Read the calls that are a whole turn in ShareGPT's shape: one, or a list."""
    found = from_json(value, "The value of a function_call")
    return found if isinstance(found, list) else [found]


def _with_system(
    data: Mapping[str, Any], messages: list[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    systems = {_string(data, key) for key in SYSTEM if key in data} - {""}
    own = [message.get("content") for message in messages if message["role"] == "system"]
    if not systems or own == [*systems]:
        return messages
    if own or len(systems) > 1:
        raise ChatError("has two system texts: leave one, beside the messages or among them.")
    return [{"role": "system", "content": systems.pop()}, *messages]


def _string(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise ChatError(f"`{key}` must be text, not {type(value).__name__}.")
    return value


def _unknown(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if "chosen" in data:
        return (
            "holds a choice between answers (chosen, rejected), which fine-tuning does not learn "
            "from: give the good one as completion beside its prompt, or as messages."
        )
    if "role" in data or "from" in data:
        return f"is a message alone, or a list of messages on a line: give {_KNOWN}."
    nulls = [f"`{key}` is null" for key in row if key in COLUMNS and key not in data]
    if nulls:
        return f"{' and '.join(nulls)}: must be {_KNOWN}."
    return f"must be {_KNOWN}; it has {', '.join(map(str, data)) or 'no keys'}."


def entries(value: Any, what: str) -> list[Any]:
    """Return a list, of JSON text too; None is an empty one."""
    found = from_json(value, what) if isinstance(value, str) and value.strip() else value
    if found is None or found == "":
        return []
    if not isinstance(found, list):
        raise ChatError(f"{what} must be a list, not {type(found).__name__}.")
    return found


def from_json(value: Any, what: str) -> Any:
    """Read a value that some files keep as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{what} is no JSON: {error}.") from error
