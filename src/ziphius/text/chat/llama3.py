"""The chat format of Llama 3: headings between tokens, texts without white space around them.

That of the first Llama 3. Later ones put a date and tools into the system text; their own template
says how (`template.py`).
"""

from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State
from ziphius.text.chat.written import Turn, WrittenFormat


class Llama3(WrittenFormat):
    """Each turn behind a heading with its role, up to `<|eot_id|>`."""

    name = "llama3"
    end = special.EOT_ID
    keeps_systems = True

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Begin the text, and write the system text as a turn."""
        return [special.BEGIN_OF_TEXT, *([] if system is None else _turn("system", system))]

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question, or a later system text."""
        return _turn(message.role, message.content)

    def opening(self, turn: Turn) -> Pieces:
        """Write the heading of the answer."""
        return _heading("assistant")

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write an answer."""
        return [message.content.strip()]

    def states(self) -> Mapping[str, State]:
        """All is content."""
        return {"content": State(parser.content, parser.ending(self.end))}


def _heading(role: str) -> Pieces:
    return [special.START_HEADER, role, special.END_HEADER, "\n\n"]


def _turn(role: str, text: str) -> Pieces:
    return [*_heading(role), text.strip(), special.EOT_ID]
