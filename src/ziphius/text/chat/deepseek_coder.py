"""The chat format of DeepSeek-Coder v1: headings in plain text, `<|EOT|>` after each answer.

A user's text can imitate a heading ("### Instruction:") but not the end token. A system text that
does not end its line gets a line break, without which the heading would not stand on its own line.
"""

from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State
from ziphius.text.chat.written import Turn, WrittenFormat

DEFAULT_SYSTEM = (
    "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by "
    "DeepSeek Company, and you only answer questions related to computer science. For politically "
    "sensitive questions, security and privacy issues, and other non-computer science questions, "
    "you will refuse to answer."
)


class DeepSeekCoder(WrittenFormat):
    """`### Instruction:` and `### Response:`; the published system text where none is given."""

    name = "deepseek-coder"
    end = special.EOT
    has_fim = True
    closing = "\n"

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Put the system text in front; an empty system message leaves it out."""
        text = DEFAULT_SYSTEM if system is None else system
        return [special.BOS, text, "" if not text or text.endswith("\n") else "\n"]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write an instruction."""
        return [f"### Instruction:\n{message.content}\n"]

    def opening(self, turn: Turn) -> Pieces:
        """Write the heading of the answer."""
        return ["### Response:\n"]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write an answer."""
        return [message.content, "\n"]

    def states(self) -> Mapping[str, State]:
        """All is content, but for the line break before the end token."""
        ends = parser.ending(special.EOT) | parser.ending("\n" + special.EOT)
        return {"content": State(parser.content, ends)}
