"""The chat formats of DeepSeek-V2.5, V3 and R1.

Departures from the Jinja templates that come with the models:

1. a round of calls is opened once and closed once, whether it has one call or five; V3's template
   forgets the end of a single call and repeats that of many;
2. so is each round of results, the second one of a conversation too;
3. results are joined by a line break in both formats, as V2.5's model card has them; R1's template
   leaves it out;
4. tools are described in the system text as in V2.5's model card; the templates do not show them;
5. reasoning is a field of its own, so a `</think>` in a message's content is text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.parser import State, Step
from ziphius.text.chat.tool_tokens import states_with_calls
from ziphius.text.chat.written import Turn, WrittenFormat

_FENCE = "\n```"


class DeepSeekV3(WrittenFormat):
    """Tokens for the roles and for tools; the answer to tool results has no role token."""

    name = "deepseek-v3"
    roles = ("system", "user", "assistant", "tool")
    has_tools = True
    has_fim = True

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Put the system text in front, then the tools."""
        if tools and not system:
            system = "You are a helpful Assistant."
        return [special.BOS, system or "", _tool_text(tools) if tools else "", reply]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question."""
        return [special.USER, message.content]

    def opening(self, turn: Turn) -> Pieces:
        """Begin the assistant's turn; after results it goes on by itself."""
        return [] if turn.after_results else [special.ASSISTANT]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the answer and its calls."""
        pieces: Pieces = [message.content]
        for i, call in enumerate(message.tool_calls):
            pieces += ["\n"] if i else [special.CALLS_BEGIN]
            pieces += _call(call)
        return [*pieces, special.CALLS_END] if message.tool_calls else pieces

    def results(self, results: Sequence[Message]) -> Pieces:
        """Write the results of one round, a line each."""
        pieces: Pieces = [special.OUTPUTS_BEGIN]
        for i, result in enumerate(results):
            pieces += ["\n" if i else "", special.OUTPUT_BEGIN, result.content, special.OUTPUT_END]
        return [*pieces, special.OUTPUTS_END]

    def reply_schema(self, schema: Mapping[str, Any]) -> str:
        """Demand a JSON object; the model then answers inside a ```json fence."""
        if schema:
            raise ChatError(f"Chat format {self.name} can demand any JSON object, but no schema.")
        return "\n\n## Response Format\n\nReply with JSON object ONLY."

    def states(self) -> Mapping[str, State]:
        """Read kind, name and fenced arguments of a call; the fence may be missing."""
        close = Step("calls", parser.close_call)
        ends = (_FENCE + special.CALL_END, _FENCE.strip() + special.CALL_END, special.CALL_END)
        return states_with_calls(
            "kind",
            {
                "kind": {special.CALL_SEP: Step("name", parser.drop_held)},
                "name": {"\n": Step("arguments", parser.name_call, lead="```json\n")},
                "arguments": dict.fromkeys(ends, close),
            },
        )


class DeepSeekR1(DeepSeekV3):
    """V3's format with a think block, which the prompt opens: the README's advice.

    With `thinking=False` the prompt leaves that to the model, as R1-0528's own template does.
    """

    name = "deepseek-r1"
    thinking_modes = (True, False)
    opens_own_thinking = True
    direct = "deepseek-v3"

    def opening(self, turn: Turn) -> Pieces:
        """Open the think block, unless the turn is a past one or goes on after results."""
        opens = turn.thinks and turn.thinking and not turn.after_results
        return [*super().opening(turn), *([special.THINK, "\n"] if opens else [])]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the reasoning before the answer, with its opening where the prompt has none."""
        answer = super().completion(message, turn)
        if not turn.thinks or message.reasoning_content is None:
            return answer
        opened = turn.thinking and not turn.after_results
        start = [] if opened else [special.THINK, "\n"]
        return [*start, message.reasoning_content, "\n", special.END_THINK, "\n\n", *answer]

    def states(self) -> Mapping[str, State]:
        """Add the think block."""
        return {**super().states(), **parser.thinking(special.EOS)}


def _call(call: ToolCall) -> Pieces:
    fenced = f"{call.name}\n```json\n{call.arguments}{_FENCE}"
    return [special.CALL_BEGIN, "function", special.CALL_SEP, fenced, special.CALL_END]


def _tool_text(tools: Sequence[Tool]) -> str:
    shown = [
        f"- `{tool.name}`:\n```json\n{json.dumps(tool.schema(), indent=4, ensure_ascii=False)}\n```"
        for tool in tools
    ]
    head = "\n\n## Tools\n\n### Function\n\nYou have the following functions available:\n\n"
    return head + "\n\n".join(shown)
