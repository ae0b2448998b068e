"""The chat formats of Qwen2.5 and Qwen3: ChatML with tools in tags of JSON, and a think block.

Both follow the templates that come with the models. Their vocabularies have tokens for the tags of
calls, Qwen3's for those of results and the think block too; an older one spells them.

Qwen3 shows reasoning since the last question alone, and a think block, if an empty one, in the last
answer of a conversation. A `</think>` inside an answer divides it as its template does.
"""

import json
from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.chatml import ChatML
from ziphius.text.chat.format import Pieces, Segment
from ziphius.text.chat.json_calls import tagged_calls
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.parser import State
from ziphius.text.chat.written import Turn

_CALL_TOKENS = (special.TOOL_CALL, special.END_TOOL_CALL)
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
    "provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call>"
)


class Qwen25(ChatML):
    """Qwen2.5-Instruct: a system text of its own where none is given."""

    name = "qwen2.5"
    default_system: str | None = (
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    )
    roles = ("system", "user", "assistant", "tool")
    has_tools = True
    spelled = frozenset({*_CALL_TOKENS, special.TOOL_RESPONSE, special.END_TOOL_RESPONSE})

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Write the system text as a turn, with the tools behind it."""
        if not tools:
            return super().start(system, tools, reply)
        text = self.default_system if system is None else system
        head = "system\n" if text is None else f"system\n{text}\n\n"
        return [special.IM_START, head, *_tool_pieces(tools), special.IM_END, "\n"]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write an answer and its calls, a line each."""
        return [message.content, *self._calls(message, after=bool(message.content))]

    def results(self, results: Sequence[Message]) -> Pieces:
        """Write the results of one round as a user's turn."""
        pieces: Pieces = [special.IM_START, "user"]
        for result in results:
            pieces += ["\n", special.TOOL_RESPONSE, f"\n{result.content}\n"]
            pieces += [special.END_TOOL_RESPONSE]
        return [*pieces, special.IM_END, "\n"]

    def states(self) -> Mapping[str, State]:
        """Read content and calls."""
        return tagged_calls(self.end)

    def arguments(self, call: ToolCall) -> str:
        """Write the arguments of a call as the template does: read and written anew."""
        return json.dumps(call.values(), ensure_ascii=False)

    def _calls(self, message: Message, *, after: bool) -> Pieces:
        pieces: Pieces = []
        for i, call in enumerate(message.tool_calls):
            said = f'\n{{"name": "{call.name}", "arguments": {self.arguments(call)}}}\n'
            pieces += ["\n" if after or i else "", special.TOOL_CALL, said, special.END_TOOL_CALL]
        return pieces


class Qwen3(Qwen25):
    """Qwen3: thinks unless it is told not to, by an empty think block that the prompt holds."""

    name = "qwen3"
    default_system = None
    thinking_modes = (True, False)
    opens_own_thinking = True
    keeps_reasoning = True
    spelled = Qwen25.spelled | {special.THINK, special.END_THINK}

    def opening(self, turn: Turn) -> Pieces:
        """Begin the assistant's turn, with the empty block of one that must not think."""
        closed = [] if turn.thinking else [special.THINK, "\n\n", special.END_THINK, "\n\n"]
        return [*super().opening(turn), *closed]

    def arguments(self, call: ToolCall) -> str:
        """Leave the arguments as the model wrote them."""
        return call.arguments

    def states(self) -> Mapping[str, State]:
        """Add the think block."""
        return {**super().states(), **parser.thinking(self.end)}

    def _assistant(self, turns: Sequence[Message], i: int, thinking: bool) -> list[Segment]:
        reasoning, content = _divided(turns[i])
        asked = max((j for j, turn in enumerate(turns) if _asks(turn)), default=len(turns))
        is_last = i == len(turns) - 1
        shown = i > asked and (is_last or bool(reasoning))
        block: Pieces = []
        if shown:
            content = content.lstrip("\n")
            block = [special.THINK, "\n", reasoning.strip("\n"), "\n", special.END_THINK, "\n\n"]
        in_prompt = shown and is_last and not thinking and not reasoning
        head = self.opening(Turn(shown, not in_prompt, after_results=False))
        said = [*([] if in_prompt else block), content]
        calls = self._calls(turns[i], after=bool(content))
        return [
            Segment(head),
            Segment([*said, *calls, self.end], completion=True),
            Segment([self.closing]),
        ]


def _divided(message: Message) -> tuple[str, str]:
    """Return reasoning and content; a block inside the content is taken out of it."""
    content = message.content
    if message.reasoning_content is not None or special.END_THINK not in content:
        return message.reasoning_content or "", content
    before, *_ = content.split(special.END_THINK)
    reasoning = before.rstrip("\n").split(special.THINK)[-1].lstrip("\n")
    return reasoning, content.split(special.END_THINK)[-1].lstrip("\n")


def _asks(message: Message) -> bool:
    """Tell a question from a user's turn that brings the result of a tool."""
    begin, end = special.TOOL_RESPONSE, special.END_TOOL_RESPONSE
    is_result = message.content.startswith(begin) and message.content.endswith(end)
    return message.role == "user" and not is_result


def _tool_pieces(tools: Sequence[Tool]) -> Pieces:
    """Describe the tools; special tokens in our words are tokens, those in a schema are text."""
    shown = "".join(
        "\n" + json.dumps({"type": "function", "function": tool.schema()}, ensure_ascii=False)
        for tool in tools
    )
    return [_TOOLS_BEFORE, shown, *special.split_special(_TOOLS_AFTER, _CALL_TOKENS)]
