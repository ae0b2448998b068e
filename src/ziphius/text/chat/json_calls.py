"""Tool calls that are one JSON object each: in `<tool_call>` tags, or as the whole of an answer.

`{"name": ..., "arguments": {...}}` in tags is how Qwen and Hermes models call; Llama 3.1's whole
answer is `{"name": ..., "parameters": {...}}`. White space and the order of the keys are the
model's choice, so an object is read when it is whole. One that breaks off, or that JSON does not
know, is still a call if it says whom it calls: not complete, with what there is of its arguments.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.events import ContentText
from ziphius.text.chat.messages import json_object
from ziphius.text.chat.parser import Action, State, Step, StreamParser

_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,128})"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')


def tagged_calls(end: str) -> dict[str, State]:
    """Return the states of an answer that may hold calls in `<tool_call>` tags.

    The line break between content and a call belongs to neither.
    """
    ends = parser.ending(end)
    begin: dict[str, Step] = {
        special.TOOL_CALL: Step("call"),
        "\n" + special.TOOL_CALL: Step("call"),
    }
    cut: dict[str, Step] = {
        special.END_TOOL_CALL: Step("between", read_call),
        special.TOOL_CALL: Step("call", read_call),
        end: Step("content", _last(read_call)),
    }
    return {
        "content": State(parser.content, begin | ends),
        "call": State(parser.hold, cut, cut_off=read_call),
        "between": State(parser.content, begin | ends, skip_space=True),
    }


def whole_calls(end: str) -> dict[str, State]:
    """Return the states of an answer that is one call, or none."""
    ends = parser.ending(end)
    cut = {end: Step("content", _last(read_call_or_content))}
    call = Step("call", lambda reader: reader.hold('{"name"'))
    begin: dict[str, Step] = {special.PYTHON_TAG: Step("start"), '{"name"': call}
    return {
        "start": State(parser.content, begin | ends, skip_space=True, otherwise="content"),
        "call": State(parser.hold, cut, cut_off=read_call_or_content),
        "content": State(parser.content, ends),
    }


def read_call(reader: StreamParser) -> None:
    """Turn the text held into a call; without a name it is content."""
    text = reader.take_held()
    name, arguments, complete = _parts(text)
    if name is None:
        if text.strip():
            reader.emit(ContentText(text))
        return
    reader.start_call(name)
    if arguments:
        reader.add_arguments(arguments)
    reader.end_call(complete=complete)


def read_call_or_content(reader: StreamParser) -> None:
    """Turn the text held into a call if it says whom it calls with what, else into content."""
    text = reader.take_held()
    if _parts(text)[0] is not None and _ARGUMENTS.search(text):
        reader.hold(text)
        read_call(reader)
    elif text:
        reader.emit(ContentText(text))


def _last(action: Action) -> Action:
    def act(reader: StreamParser) -> None:
        action(reader)
        reader.end_turn()

    return act


def _parts(text: str) -> tuple[str | None, str, bool]:
    """Find the name and the arguments as they stand; whether the whole is a call."""
    values = json_object(text)
    if values is not None and isinstance(values.get("name"), str):
        given: Any = next((values[key] for key in ("arguments", "parameters") if key in values), {})
        if isinstance(given, str):  # some models quote the object once more
            return values["name"], given, True
        return values["name"], _as_written(text, given), True
    name = _NAME.search(text)
    if name is None:
        return None, "", False
    start = _ARGUMENTS.search(text)
    return name[1], text[start.end() :].strip() if start else "", False


def _as_written(text: str, values: Mapping[str, object]) -> str:
    """Return the arguments in the model's own spelling, as far as they can be found."""
    for start in _ARGUMENTS.finditer(text):
        try:
            found, end = json.JSONDecoder().raw_decode(text, start.end())
        except ValueError:
            continue  # the words stood inside of another text
        if found == values:
            return text[start.end() : end]
    return json.dumps(values, ensure_ascii=False)
