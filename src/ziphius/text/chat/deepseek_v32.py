"""The chat format of DeepSeek-V3.2: calls as tagged parameters ("DSML"), thinking between calls.

Follows the Python encoder that comes with the model (it has no Jinja template). What marks its tags
is a token in vocabularies made for it, ours included; in an older one it is spelled as text, and
there a user's text can imitate a tag. A parameter is raw text if it is a string and JSON if not;
the parser joins them to the JSON object that callers expect.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.parser import Action, State, Step, StreamParser
from ziphius.text.chat.written import Turn, WrittenFormat

_CALLS, _END_CALLS = f"<{special.DSML}function_calls>", f"</{special.DSML}function_calls>"
_INVOKE, _END_INVOKE = f'<{special.DSML}invoke name="', f"</{special.DSML}invoke>"
_PARAMETER, _END_PARAMETER = f'<{special.DSML}parameter name="', f"</{special.DSML}parameter>"

_TOOLS_BEFORE = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{_CALLS}" block like the following as part of your reply to \
the user:
{_CALLS}
{_INVOKE}$FUNCTION_NAME">
{_PARAMETER}$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{_END_PARAMETER}
...
{_END_INVOKE}
{_INVOKE}$FUNCTION_NAME2">
...
{_END_INVOKE}
{_END_CALLS}

String and scalar parameters should be specified as is without any escaping or quotes, while lists \
and objects should use JSON format. The "string" attribute should be set to "true" for string type \
parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider \
outputting a thinking block. Here is an example:

{_CALLS}
...
{_END_CALLS}

<function_results>
...
</function_results>

{special.THINK}...thinking about results{special.END_THINK}

Here are the functions available in JSONSchema format:
<functions>
"""
_TOOLS_AFTER = "\n</functions>\n"


class DeepSeekV32(WrittenFormat):
    """V3.1's turns, with other tools; reasoning stays since the last user message."""

    name = "deepseek-v3.2"
    thinking_modes = (False, True)
    keeps_reasoning = True
    keeps_systems = True
    roles = ("system", "developer", "user", "assistant", "tool")
    has_tools = True
    has_fim = True
    spelled = frozenset({special.DSML})

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Put the system text in front, then the tools and the demand for an answer in JSON."""
        return [special.BOS, system or "", *_tool_pieces(tools), reply]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question; a developer's brings its own tools, a later system text no mark."""
        if message.role == "system":
            return [message.content]
        if message.role == "user":
            return [special.USER, message.content]
        shown = _tool_pieces(tools)
        return [special.USER, *shown, f"\n\n# The user's message is: {message.content}"]

    def opening(self, turn: Turn) -> Pieces:
        """Open the think block or close it, after results too."""
        start = "\n\n" if turn.after_results else special.ASSISTANT
        return [start, special.THINK if turn.thinks else special.END_THINK]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the reasoning, the answer and its calls."""
        thoughts = [message.reasoning_content or "", special.END_THINK] if turn.thinks else []
        if not message.tool_calls:
            return [*thoughts, message.content]
        calls = [piece for call in message.tool_calls for piece in _call_pieces(call)]
        block = [*_split(f"\n\n{_CALLS}"), *calls, *_split(f"\n{_END_CALLS}")]
        return [*thoughts, message.content, *block]

    def results(self, results: Sequence[Message]) -> Pieces:
        """Write the results of one round in tags of plain text."""
        shown = "".join(f"\n<result>{result.content}</result>" for result in results)
        return [f"\n\n<function_results>{shown}\n</function_results>"]

    def reply_schema(self, schema: Mapping[str, Any]) -> str:
        """Demand an answer that fits the schema."""
        demand = "You MUST strictly adhere to the following schema to reply:"
        return f"\n\n## Response Format:\n\n{demand}\n{_json(dict(schema))}"

    def states(self) -> Mapping[str, State]:
        """Read reasoning, answer and tagged calls."""
        end = parser.ending(special.EOS)
        close: dict[str, Step] = {special.END_THINK: Step("content")}
        begin = {"\n" * breaks + _CALLS: Step("calls") for breaks in range(3)}
        cut_off = end | {
            _INVOKE: Step("name", parser.abort_call),
            _END_CALLS: Step("tail", parser.abort_call),
        }
        invoke = {_INVOKE: Step("name"), _END_CALLS: Step("tail")}
        key_ends = {
            '" string="true">': Step("string", _begin_value('"')),
            '" string="false">': Step("json", _begin_value("")),
        }
        inside = {_PARAMETER: Step("key"), _END_INVOKE: Step("calls", _end_invoke)}
        lost = {_END_INVOKE: Step("calls", parser.abort_call)}
        return {
            "reasoning": State(parser.reasoning, close | end),
            "content": State(parser.content, begin | end),
            "calls": State(parser.content, invoke | end, skip_space=True),
            "tail": State(parser.content, begin | end, skip_space=True),
            "name": State(
                parser.hold, {'">': Step("parameters", parser.name_call)} | lost | cut_off
            ),
            "parameters": State(parser.content, inside | cut_off, skip_space=True),
            "key": State(parser.hold, key_ends | lost | cut_off),
            "string": State(
                _string, {_END_PARAMETER: Step("parameters", _end_string)} | lost | cut_off
            ),
            "json": State(parser.arguments, {_END_PARAMETER: Step("parameters")} | lost | cut_off),
        }


def _tool_pieces(tools: Sequence[Tool]) -> Pieces:
    """Describe the tools; special tokens in our words are tokens, those in a schema are text."""
    if not tools:
        return []
    schemas = "\n".join(_json(tool.schema()) for tool in tools)
    return ["\n\n", *_split(_TOOLS_BEFORE), schemas, *_split(_TOOLS_AFTER)]


def _call_pieces(call: ToolCall) -> Pieces:
    pieces = [*_split(f"\n{_INVOKE}"), f'{call.name}">\n']
    for i, (key, value) in enumerate(call.values().items()):
        is_text = isinstance(value, str)
        pieces += [*_split(("\n" if i else "") + _PARAMETER)]
        pieces += [f'{key}" string="{str(is_text).lower()}">', value if is_text else _json(value)]
        pieces += _split(_END_PARAMETER)
    return [*pieces, *_split(f"\n{_END_INVOKE}")]


def _split(text: str) -> Pieces:
    return special.split_special(text, (special.DSML, special.THINK, special.END_THINK))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _begin_value(quote: str) -> Action:
    """Return the action that turns the held name of a parameter into a JSON key."""

    def begin(reader: StreamParser) -> None:
        start = ", " if reader.has_arguments else "{"
        reader.add_arguments(f"{start}{_json(reader.take_held())}: {quote}")

    return begin


def _string(reader: StreamParser, text: str) -> None:
    """Pass raw text on as a part of a JSON string."""
    reader.add_arguments(_json(text)[1:-1])


def _end_string(reader: StreamParser) -> None:
    reader.add_arguments('"')


def _end_invoke(reader: StreamParser) -> None:
    reader.add_arguments("}" if reader.has_arguments else "{}")
    reader.end_call(complete=True)
