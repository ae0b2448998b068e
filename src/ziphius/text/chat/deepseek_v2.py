"""The chat format of DeepSeek-V2 and Coder-V2: role words in plain text.

A user's text can imitate a role ("User:"), as in every model trained on such words, but it cannot
make a token that begins or ends a text.
"""

from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State, Step
from ziphius.text.chat.written import Turn, WrittenFormat


class DeepSeekV2(WrittenFormat):
    """`User: ...` and `Assistant: ...`, blank lines between, an end token after each answer."""

    name = "deepseek-v2"
    keeps_systems = True
    has_fim = True

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Put the system text in front, with a blank line after it."""
        return [special.BOS, "" if system is None else f"{system}\n\n"]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question, or a later system text."""
        speaker = "User: " if message.role == "user" else ""
        return [f"{speaker}{message.content}\n\n"]

    def opening(self, turn: Turn) -> Pieces:
        """End the prompt without the space, which belongs to the answer's first token."""
        return ["Assistant:"]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write an answer."""
        return [" ", message.content]

    def states(self) -> Mapping[str, State]:
        """All is content."""
        return {"content": State(parser.content, parser.ending(self.end))}

    def first_step(self, thinking: bool) -> Step:
        """Drop the space between the colon and the answer."""
        return Step("content", lead=" ")
