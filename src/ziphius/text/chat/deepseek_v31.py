"""The chat format of DeepSeek-V3.1, which thinks or not as the prompt says.

The tool text is that of the model card. Published templates differ in how they print the tools; the
card's text is the one that describes all of it.
"""

import json
from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State, Step
from ziphius.text.chat.tool_tokens import states_with_calls
from ziphius.text.chat.written import Turn, WrittenFormat

_TOOL_RULES: Pieces = [
    "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n",
    special.CALLS_BEGIN,
    special.CALL_BEGIN,
    "tool_call_name",
    special.CALL_SEP,
    "tool_call_arguments",
    special.CALL_END,
    "{additional_tool_calls}",
    special.CALLS_END,
    "\n\nWhere:\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
    "Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces",
]


class DeepSeekV31(WrittenFormat):
    """Past turns and direct answers begin with a closed think block, others with an open one."""

    name = "deepseek-v3.1"
    thinking_modes = (False, True)
    thinks_with_tools = False
    roles = ("system", "user", "assistant", "tool")
    has_tools = True
    has_fim = True

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Put the system text in front, then the tools and the rules of calling them."""
        head = [special.BOS, system or ""]
        return [*head, _tool_text(tools), *_TOOL_RULES] if tools else head

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question."""
        return [special.USER, message.content]

    def opening(self, turn: Turn) -> Pieces:
        """Begin the assistant's turn with its think block; after results it goes on by itself."""
        if turn.after_results:
            return []
        return [special.ASSISTANT, special.THINK if turn.thinks else special.END_THINK]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the reasoning, the answer and its calls."""
        thoughts = [message.reasoning_content or "", special.END_THINK] if turn.thinks else []
        calls: Pieces = []
        for call in message.tool_calls:
            calls += [special.CALL_BEGIN, call.name, special.CALL_SEP, call.arguments]
            calls += [special.CALL_END]
        block = [special.CALLS_BEGIN, *calls, special.CALLS_END] if calls else []
        return [*thoughts, message.content, *block]

    def results(self, results: Sequence[Message]) -> Pieces:
        """Write the results one after the other."""
        pieces: Pieces = []
        for result in results:
            pieces += [special.OUTPUT_BEGIN, result.content, special.OUTPUT_END]
        return pieces

    def states(self) -> Mapping[str, State]:
        """Read reasoning, answer and calls."""
        close: dict[str, Step] = {special.END_THINK: Step("content")}
        calls: dict[str, dict[str, Step]] = {
            "name": {special.CALL_SEP: Step("arguments", parser.name_call)},
            "arguments": {special.CALL_END: Step("calls", parser.close_call)},
        }
        return {
            **states_with_calls("name", calls),
            "reasoning": State(parser.reasoning, close | parser.ending(special.EOS)),
        }


def _tool_text(tools: Sequence[Tool]) -> str:
    text = "\n\n## Tools\nYou have access to the following tools:\n\n"
    for tool in tools:
        parameters = json.dumps(tool.schema()["parameters"], ensure_ascii=False)
        text += f"### {tool.name}\nDescription: {tool.description}\n\nParameters: {parameters}\n\n"
    return text
