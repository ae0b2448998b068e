"""ChatML, the format of the Qwen and SmolLM2 models that serve as bases and as small teachers."""

from collections.abc import Mapping, Sequence

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import State
from ziphius.text.chat.written import Turn, WrittenFormat


class ChatML(WrittenFormat):
    """Each turn between `<|im_start|>role` and `<|im_end|>`; no token begins the text."""

    name = "chatml"
    end = special.IM_END
    closing = "\n"
    keeps_systems = True
    default_system: str | None = None
    """System text of conversations that have none."""

    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Write the system text as a turn."""
        text = self.default_system if system is None else system
        return [] if text is None else turn("system", text)

    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a question, or a later system text."""
        return turn(message.role, message.content)

    def opening(self, turn: Turn) -> Pieces:
        """Begin the assistant's turn."""
        return [special.IM_START, "assistant\n"]

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write an answer."""
        return [message.content]

    def states(self) -> Mapping[str, State]:
        """All is content."""
        return {"content": State(parser.content, parser.ending(self.end))}


class ThinkingChatML(ChatML):
    """ChatML for models that decide themselves whether to think, in a block as Qwen3 writes it.

    Vocabularies of such bases have no tokens for the block, so what begins and ends it may be text.
    """

    name = "chatml-think"
    opens_own_thinking = True
    spelled = frozenset({special.THINK, special.END_THINK})

    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write the reasoning, if there is any, before the answer."""
        if not turn.thinks or message.reasoning_content is None:
            return [message.content]
        block = [special.THINK, "\n", message.reasoning_content, "\n", special.END_THINK, "\n\n"]
        return [*block, message.content]

    def states(self) -> Mapping[str, State]:
        """Add the think block."""
        return {**super().states(), **parser.thinking(self.end)}


class SmolLM2(ChatML):
    """ChatML with the system text that SmolLM2-Instruct was trained with."""

    name = "smollm2"
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def turn(role: str, text: str) -> Pieces:
    """Write one whole turn."""
    return [special.IM_START, f"{role}\n{text}", special.IM_END, "\n"]
