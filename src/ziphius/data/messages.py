"""Conversations from files: rows of many shapes become messages and tools, or say what is wrong.

A row that cannot be used is never dropped without a word, because a conversation that is dropped
is one that nobody learns from: it is an error, or counted in a `RowReport`. Inside a message every
key counts, so one that is unknown and has a value is an error too.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ziphius.core.errors import ChatError
from ziphius.data.chat_rows import COLUMNS, chat_row, entries, from_json
from ziphius.data.document import fraction
from ziphius.data.errors import DataError
from ziphius.data.json_rows import Row
from ziphius.data.row_files import rows_of_files
from ziphius.data.row_report import SHOWN, RowReport
from ziphius.text.chat import Message, Tool, ToolCall

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of what an assistant thought: DeepSeek's, vLLM's, and that of newer templates."""
WEIGHTS = ("weight", "train", "loss")
"""Keys that say whether an assistant's turn is learned: OpenAI's, and two of other trainers."""
_OTHERS = ("role", "content", "tool_calls", "tool_call_id", "name", "refusal", "function_call")
MESSAGE_KEYS = frozenset((*_OTHERS, *REASONING, *WEIGHTS))
ABOUT = frozenset(
    (
        *("annotations", "id", "timestamp", "created", "created_at", "index", "turn_identifier"),
        *("model", "finish_reason", "type", "status", "source", "language", "metadata", "usage"),
        "logprobs",
    )
)
"""Keys about a message that are no part of what it says."""
JOINED = "assistant messages that followed another one were joined to it"
NAMED = "names of speakers were left out, as chat formats have none"


@dataclass(frozen=True)
class Conversation:
    """Messages to learn from, and the tools they were written with."""

    where: str
    """File and line, for errors."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    masked_turns: frozenset[int] = frozenset()
    """Places of assistants' messages that are context and not learned."""
    text: str | None = None
    """Running text instead of messages, all of it learned."""


def read_conversations(path: Path, report: RowReport | None = None) -> Iterator[Conversation]:
    """Read a file of conversations, all files of a folder, or `hf:NAME`, as a stream.

    A file of a folder in which no row fits, as a package.json, is set aside if another has rows
    that do; unless the report is strict.

    Args:
        path: what the user named.
        report: counts rows and takes the bad ones; without it the first of them is an error.

    Raises:
        DataError: a file cannot be read or holds nothing; or naming file and line: no JSON, no
            shape that is known, a message that no role can say, no assistant to learn from.
    """
    report = report or RowReport()
    before = report.read
    misfits: list[_Misfit] = []
    some_fit = False
    for file, rows in rows_of_files(path, COLUMNS):
        # Whether a file of a folder is data at all, the first row that fits will show.
        misfit = _Misfit(file) if path.is_dir() and not report.strict else None
        for conversation in _fitting(rows, report, misfit):
            some_fit = True
            yield conversation
        if misfit is not None and misfit.rows:
            misfits.append(misfit)
    for misfit in misfits:
        if some_fit:
            report.set_aside(misfit.file, misfit.errors[0], misfit.rows)
        else:
            misfit.refuse_rows(report)
    if report.read == before:
        raise DataError(f"{path} holds no conversations: give one JSON object on each line.")


@dataclass
class _Misfit:
    """A file of which no row has fitted yet."""

    file: str
    rows: int = 0
    errors: list[DataError] = field(default_factory=list)
    """Of the first rows, as many as are shown."""

    def add(self, error: DataError) -> None:
        self.rows += 1
        if len(self.errors) < SHOWN:
            self.errors.append(error)

    def refuse_rows(self, report: RowReport) -> None:
        """Let a report skip all rows; the last error stands for those that are only counted."""
        report.read += self.rows
        for number in range(self.rows):
            report.refuse(self.errors[min(number, len(self.errors) - 1)])
        self.rows = 0


def _fitting(
    rows: Iterable[Row], report: RowReport, misfit: _Misfit | None
) -> Iterator[Conversation]:
    """Read the rows of a file; bad ones before the first that fits wait in `misfit`, if given."""
    for row in rows:
        try:
            conversation = _conversation(row, report.changes)
        except ChatError as problem:
            error = DataError(f"{row.where}: {problem}")
            if misfit is not None:
                misfit.add(error)
                continue
            report.read += 1
            report.refuse(error)
        else:
            if misfit is not None:
                misfit.refuse_rows(report)
                misfit = None
            report.read += 1
            yield conversation


def messages_of(turns: Sequence[Any]) -> tuple[Message, ...]:
    """Read the messages of a conversation that is to be answered, as those to learn from are read.

    Raises:
        ChatError: a message has no role, or says what no role can.
    """
    entries_of_turns = chat_row({"messages": list(turns)}).messages
    return tuple(_message(entry, Counter()) for entry in entries_of_turns)


def is_held_out(conversation: Conversation, share: float) -> bool:
    """Say whether a conversation is kept from training, by what its messages say.

    Copies of a conversation fall on one side, wherever they stand and whatever comes beside them.
    """
    return fraction("held out", words_of(conversation)) < share


def words_of(conversation: Conversation) -> str:
    """Return all that a conversation says, to draw numbers from."""
    return repr(conversation.messages) if conversation.text is None else conversation.text


def split_held_out(
    conversations: Iterable[Conversation], share: float
) -> tuple[list[Conversation], list[Conversation]]:
    """Take a share away for validation, as `is_held_out` says."""
    learned: list[Conversation] = []
    held_out: list[Conversation] = []
    for conversation in conversations:
        (held_out if is_held_out(conversation, share) else learned).append(conversation)
    return learned, held_out


def _conversation(row: Row, changes: Counter[str]) -> Conversation:
    if row.problem is not None:
        raise ChatError(row.problem)
    found = chat_row(row.data)
    if found.text is not None:
        if not found.text.strip():
            raise ChatError("has an empty text, so there is nothing to learn.")
        return Conversation(row.where, (), text=unicode(found.text))
    messages = [_message(entry, changes) for entry in found.messages]
    learned = [
        _is_learned(entry, message) and place >= found.prompt
        for place, (entry, message) in enumerate(zip(found.messages, messages, strict=True))
    ]
    messages, learned = _joined(messages, learned, changes)
    if not any(message.role == "assistant" for message in messages):
        raise ChatError("has no assistant message, so there is nothing to learn.")
    for message, weight in zip(messages, learned, strict=True):
        if weight and not (message.content or message.reasoning_content or message.tool_calls):
            raise ChatError("has an assistant message that says nothing, which would be learned.")
    if not any(learned):
        raise ChatError("has no assistant message of weight 1, so there is nothing to learn.")
    tools = tuple(map(_tool, entries(found.tools, "`tools`")))
    spoken = [place for place, message in enumerate(messages) if message.role == "assistant"]
    masked_turns = frozenset(place for place in spoken if not learned[place])
    return Conversation(row.where, tuple(messages), tools, masked_turns)


def _message(entry: Mapping[str, Any], changes: Counter[str]) -> Message:
    unknown = [key for key in entry.keys() - MESSAGE_KEYS - ABOUT if entry[key]]
    if unknown:
        raise ChatError(
            f"A message has the unknown key {min(unknown)!r}; known are "
            f"{', '.join(sorted(MESSAGE_KEYS))}."
        )
    if entry.get("name") and entry["role"] != "tool":
        changes[NAMED] += 1
    calls = entries(entry.get("tool_calls"), "`tool_calls`")
    if entry.get("function_call"):
        calls = [*calls, entry["function_call"]]
    content = _text(entry.get("content"))
    return Message(
        role=entry["role"],
        content=content or _string(entry.get("refusal"), "The refusal"),
        reasoning_content=_reasoning(entry),
        tool_calls=tuple(map(_tool_call, calls)),
        tool_call_id=_string(entry.get("tool_call_id"), "The tool_call_id") or None,
    )


def _text(content: Any) -> str:
    """Join the text parts of a content; None, as beside tool calls, is empty."""
    if isinstance(content, list):
        parts = [_object(part, "A part of a content") for part in content]
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return unicode("".join(part["text"] for part in parts))
    elif content is None or isinstance(content, str):
        return unicode(content or "")
    raise ChatError("The content of a message must be text, or a list of text parts.")


def _reasoning(entry: Mapping[str, Any]) -> str:
    said = {_string(entry.get(key), f"`{key}`") for key in REASONING} - {""}
    if len(said) > 1:
        names = ", ".join(key for key in REASONING if entry.get(key))
        raise ChatError(f"A message has two reasonings that differ ({names}): leave one of them.")
    return said.pop() if said else ""


def _is_learned(entry: Mapping[str, Any], message: Message) -> bool:
    """Read the weight of a message; what nobody but an assistant can write is never learned."""
    given = {key: entry[key] for key in WEIGHTS if entry.get(key) is not None}
    for key, weight in given.items():
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise ChatError(f"The {key} of a message must be 0 or 1, not {weight!r}.")
        if weight and message.role != "assistant":
            raise ChatError(
                f"A message of role {message.role!r} has {key} {weight!r}, but only what "
                f"assistants write is learned. Leave {key} out there."
            )
    if len({bool(weight) for weight in given.values()}) > 1:
        raise ChatError(f"A message has weights that differ: {', '.join(given)}.")
    return message.role == "assistant" and all(given.values())


def _joined(
    messages: list[Message], learned: list[bool], changes: Counter[str]
) -> tuple[list[Message], list[bool]]:
    """Make one turn of assistants' messages that follow each other.

    A model ends its turn once, and what follows its end is the user's or a tool's: a second message
    behind it would be learned where no prompt ever ends. Logs split a turn into what was thought,
    said and called.
    """
    kept: list[Message] = []
    weights: list[bool] = []
    for message, weight in zip(messages, learned, strict=True):
        if message.role == "assistant" and kept and kept[-1].role == "assistant":
            if weight != weights[-1]:
                raise ChatError("Two assistant messages follow each other with unlike weights.")
            kept[-1] = _one(kept[-1], message)
            changes[JOINED] += 1
        else:
            kept.append(message)
            weights.append(weight)
    return kept, weights


def _one(first: Message, second: Message) -> Message:
    """Join two messages, if that keeps the order of what they say: thought, words, calls."""
    said = first.content or first.tool_calls
    if (second.reasoning_content and said) or (second.content and first.tool_calls):
        raise ChatError(
            "Two assistant messages follow each other, and as one turn they would be out of order: "
            "thoughts come first, then words, then calls. Join them, or put in what lies between."
        )
    thoughts = filter(None, (first.reasoning_content, second.reasoning_content))
    return replace(
        first,
        content="\n\n".join(filter(None, (first.content, second.content))),
        reasoning_content="\n\n".join(thoughts),
        tool_calls=(*first.tool_calls, *second.tool_calls),
    )


def _tool_call(data: Any) -> ToolCall:
    call = _object(data, "A tool call")
    function = (
        _object(call["function"], "The `function` of a tool call") if "function" in call else call
    )
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = "{}"
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call_id = _string(call.get("id"), "The id of a tool call") or None
    return ToolCall(_name(function, "A tool call"), unicode(arguments), call_id)


def _tool(data: Any) -> Tool:
    tool = _object(data, "A tool")
    function = _object(tool["function"], "The `function` of a tool") if "function" in tool else tool
    parameters = function.get("parameters")
    if parameters is None:
        parameters = function.get("input_schema")
    parameters = from_json(parameters, "The parameters of a tool") if parameters != "" else None
    return Tool(
        _name(function, "A tool"),
        unicode(str(function.get("description") or "")),
        None if parameters is None else _object(parameters, "The parameters of a tool"),
    )


def _name(function: Mapping[str, Any], what: str) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise ChatError(f"{what} has no name.")
    return name


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ChatError(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value


def _string(value: Any, what: str) -> str:
    """Return a text, '' for none."""
    if value is not None and not isinstance(value, str):
        raise ChatError(f"{what} must be text, not {type(value).__name__}.")
    return unicode(value or "")


def unicode(text: str) -> str:
    """Return a text that any encoding can express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ChatError(
            f"A text holds half of a UTF-16 pair at character {error.start}: replace it."
        ) from error
    return text
