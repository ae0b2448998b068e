"""Chat formats, both ways: `CHAT_FORMATS` is the only list of them.

    chat_format = get_chat_format("deepseek-r1")
    prompt = chat_format.encode(messages, tokenizer, generation_prompt=True)
    parser = chat_format.parser(thinking=prompt.thinking)   # then push, push, ..., finish

To add one: a file with a subclass of `WrittenFormat`, a template beside it in `templates/` that
writes the same, and a line in the table. What a checkpoint's own template makes a format of, under
the name that `parts.detect_chat_format` gives it, is found here too.
"""

from ziphius.core.errors import ChatError
from ziphius.text.chat.chatml import ChatML, SmolLM2, ThinkingChatML
from ziphius.text.chat.deepseek_coder import DeepSeekCoder
from ziphius.text.chat.deepseek_v2 import DeepSeekV2
from ziphius.text.chat.deepseek_v3 import DeepSeekR1, DeepSeekV3
from ziphius.text.chat.deepseek_v31 import DeepSeekV31
from ziphius.text.chat.deepseek_v32 import DeepSeekV32
from ziphius.text.chat.events import (
    ContentText,
    Event,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    TurnEnd,
)
from ziphius.text.chat.format import ChatFormat, Encoded
from ziphius.text.chat.llama3 import Llama3
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.parser import StreamParser, message_of
from ziphius.text.chat.plain import Plain
from ziphius.text.chat.qwen import Qwen3, Qwen25
from ziphius.text.chat.template import known_template
from ziphius.text.chat.written import WrittenFormat

CHAT_FORMATS: dict[str, WrittenFormat] = {
    "deepseek-v2": DeepSeekV2(),  # V2, Coder-V2
    "deepseek-coder": DeepSeekCoder(),  # Coder v1
    "deepseek-v3": DeepSeekV3(),  # V2.5, V3
    "deepseek-r1": DeepSeekR1(),  # R1 and its students
    "deepseek-v3.1": DeepSeekV31(),
    "deepseek-v3.2": DeepSeekV32(),
    "qwen2.5": Qwen25(),
    "qwen3": Qwen3(),
    "llama3": Llama3(),
    "chatml": ChatML(),  # Qwen2, Qwen3 bases
    "chatml-think": ThinkingChatML(),  # what such bases learn when they are trained to reason
    "smollm2": SmolLM2(),
    "plain": Plain(),  # R1-Zero on base models
}


def get_chat_format(name: str) -> ChatFormat:
    """Return the chat format of that name; the error for an unknown one lists them all."""
    found = CHAT_FORMATS.get(name) or known_template(name)
    if found is None:
        raise ChatError(f"Unknown chat format {name!r}; known are {', '.join(CHAT_FORMATS)}.")
    return found


__all__ = [
    "CHAT_FORMATS",
    "ChatFormat",
    "ContentText",
    "Encoded",
    "Event",
    "Message",
    "ReasoningText",
    "StreamParser",
    "Tool",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "TurnEnd",
    "WrittenFormat",
    "get_chat_format",
    "message_of",
]
