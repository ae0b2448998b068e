"""What a conversation is made of: frozen messages, tool calls and tools, checked when made."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ziphius.core.errors import ChatError

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call, as the OpenAI API describes it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON schema of the arguments; None for a function that takes none."""

    def __post_init__(self) -> None:
        _check_name("Tool", self.name)

    def schema(self) -> dict[str, Any]:
        """Return the description that prompts show."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        return {"name": self.name, "description": self.description, "parameters": dict(parameters)}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool with its arguments as JSON text, exactly as the model wrote it."""

    name: str
    arguments: str = "{}"
    id: str | None = None
    """Pairs a result with its call; results of calls without one come in the order of the calls."""
    complete: bool = True
    """False: the model broke off, or wrote what is no JSON object. To report, not to run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.name))
        object.__setattr__(self, "arguments", str(self.arguments))
        if self.complete:
            _check_name("Tool call", self.name)
            self.values()

    def values(self) -> dict[str, Any]:
        """Return the arguments as values."""
        values = json_object(self.arguments)
        if values is None:
            raise ChatError(
                f"The arguments of the call of {self.name!r} are no JSON object: "
                f"{self.arguments[:80]!r}. Give JSON text such as {{}}, or mark the call as not "
                "complete."
            )
        return values


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `reasoning_content` and `tool_calls` belong to assistants, `tool_call_id` to results of tools.
    An empty `reasoning_content` is none.
    """

    role: Role
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ChatError(f"Unknown role {self.role!r}; known are {', '.join(ROLES)}.")
        if not isinstance(self.content, str):
            raise ChatError(
                f"The content of a message is text, not {type(self.content).__name__}; give '' for "
                "none."
            )
        # A `SpecialToken` in a message is text like any other: `str` takes its type away.
        object.__setattr__(self, "content", str(self.content))
        object.__setattr__(self, "reasoning_content", str(self.reasoning_content or "") or None)
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if self.role != "assistant" and (self.reasoning_content or self.tool_calls):
            raise ChatError(f"Only an assistant reasons and calls tools, not role {self.role!r}.")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ChatError(f"tool_call_id belongs to role 'tool', not to {self.role!r}.")


def json_object(text: str) -> dict[str, Any] | None:
    """Read a strict JSON object; None if it is anything else, nested beyond reason included."""
    try:
        values = json.loads(text)
        json.dumps(values, allow_nan=False)  # Python reads NaN, and 1e999 as infinity
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def ordered_turns(messages: Sequence[Message], *, with_systems: bool = False) -> list[Message]:
    """Return the turns, the results of a round in the order of their calls.

    System messages are left out, or are turns like a user's.

    Formats pair results with calls by place. Calls at the very end still wait for their results.

    Raises:
        ChatError: a result has no call, a call has no result, or two assistants follow each other.
    """
    turns: list[Message] = []
    calls: tuple[ToolCall, ...] = ()
    results: dict[int, Message] = {}
    for message in messages:
        if message.role == "system" and not with_systems:
            continue
        if message.role == "tool":
            results[_answered(message, calls, results)] = message
            continue
        if len(results) < len(calls):
            raise ChatError(
                f"Of {len(calls)} tool calls, {len(results)} have a result before the next "
                f"{message.role} message. Give one for each call."
            )
        turns += [results[place] for place in sorted(results)]
        if message.role == "assistant" and turns and turns[-1].role == "assistant":
            raise ChatError("Two assistant messages follow each other; join them into one.")
        turns.append(message)
        calls, results = message.tool_calls, {}
    if 0 < len(results) < len(calls):
        raise ChatError(f"Only {len(results)} of {len(calls)} tool calls have a result.")
    return turns + [results[place] for place in sorted(results)]


def _answered(result: Message, calls: Sequence[ToolCall], results: Mapping[int, Message]) -> int:
    """Find the place of the call that a result answers: by id, else the first that waits."""
    waiting = {place: call.id for place, call in enumerate(calls) if place not in results}
    if not waiting:
        raise ChatError("A tool result has no call before it. Remove it, or add the call.")
    if result.tool_call_id is None or not any(waiting.values()):
        return min(waiting)
    found = [place for place, call_id in waiting.items() if call_id == result.tool_call_id]
    if not found:
        raise ChatError(
            f"A tool result answers the call {result.tool_call_id!r}; those that wait are "
            f"{list(waiting.values())}."
        )
    return found[0]


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ChatError(
            f"{what} name {name!r} cannot be used: give 1 to 128 letters, digits and _ . : / -"
        )
