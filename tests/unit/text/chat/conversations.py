"""Conversations that chat formats and templates are held together on: a fixed set, with its words.

Nobody in them writes a special token: what becomes of one is another question, with its own tests.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers
from jinja2 import UndefinedError

from tests.unit.text.goldens import run_template
from ziphius.text import special
from ziphius.text.byte_level import added_token
from ziphius.text.chat import Message, Tool, ToolCall
from ziphius.text.parts import TokenizerParts
from ziphius.text.tokenizer import Tokenizer

OTHER_TOKENS = (
    special.IM_START,
    special.IM_END,
    special.TOOL_CALL,
    special.END_TOOL_CALL,
    special.TOOL_RESPONSE,
    special.END_TOOL_RESPONSE,
    special.BEGIN_OF_TEXT,
    special.START_HEADER,
    special.END_HEADER,
    special.EOT_ID,
)


class Conversation(NamedTuple):
    """Messages, and how they are asked for."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None
    generation_prompt: bool = True


WEATHER = Tool(
    "get_weather",
    'The weather of a place, & how "sure" it is',
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "A town, such as K\u00f6ln"},
            "days": {"type": "integer", "minimum": 1},
        },
        "required": ["place"],
    },
)
CLOCK = Tool("clock", "Tell the time")
CALL = ToolCall("get_weather", '{"place": "K\u00f6ln", "days": 2}')
TIME = ToolCall("clock", "{}")
NESTED = ToolCall(
    "get_weather", '{"place": "x", "more": {"list": [1, 2.5, null, true], "t": "a\\nb"}}'
)
TEXTS = (
    "Hello",
    "",
    " ",
    "  two\n\nlines  ",
    "What is 12345 + 1? \u4f60\u597d!",
    "def f(x):\n    return x**2\n",
    "User: no\n\nAssistant: maybe",
    "\U0001f40b {{ messages }} {% if x %}",
    "### Instruction:\nlie",
    "a < b and b > c | d [e]",
)


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str = "", reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message("assistant", text, reasoning, calls)


def result(text: str) -> Message:
    return Message("tool", text)


def conversations() -> tuple[Conversation, ...]:
    """Return all of them, the plain ones first."""
    return (*_plain(), *_thinking(), *_with_tools())


def _plain() -> Iterator[Conversation]:
    for text in TEXTS:
        yield Conversation((user(text),))
        yield Conversation((user("Hi"), answer("Yes?"), user(text)))
        yield Conversation((user(text), answer("It is so.")), generation_prompt=False)
        yield Conversation((system(text), user("Hi")))
    for text in ("Hello", "", "two\n\nlines", "  spaces  ", "`x` = 1."):
        yield Conversation((user("Hi"), answer(text), user("More")))
    for turns in (3, 8, 20):
        many = [m for i in range(turns) for m in (user(f"Q {i}?"), answer(f"A {i}."))]
        yield Conversation((*many, user("Last")))
        yield Conversation((system("S"), *many), generation_prompt=False)
    yield Conversation((system("one"), system("two"), user("Hi")))
    yield Conversation((system("one"), user("Hi"), answer("Yes"), system("two"), user("Go")))


def _thinking() -> Iterator[Conversation]:
    past = (user("2+3?"), answer("5", "I add\nthem."), user("+1?"))
    for thinking in (None, True, False):
        yield Conversation((user("2+3?"),), thinking=thinking)
        yield Conversation(past, thinking=thinking)
        yield Conversation((system("S"), *past, answer("6", "One more."), user("?")), (), thinking)
    yield Conversation((*past, answer("6")), generation_prompt=False)
    yield Conversation((*past, answer("6", "One more.")), generation_prompt=False)
    yield Conversation((*past, answer("", "One\n\nmore.\n")), generation_prompt=False)


def _with_tools() -> Iterator[Conversation]:
    one = (user("Weather?"), answer("", None, CALL), result('{"sky": "grey"}'))
    two = (user("Both?"), answer("", None, CALL, TIME), result("grey"), result("noon"))
    said = (user("Both?"), answer("Let me see.", None, NESTED), result(""))
    rounds = (*one, answer("", "Now the time.", TIME), result("noon"))
    for turns in (one, two, said, rounds, (*one, answer("Grey."), user("And now?"), *one[1:])):
        for tools in ((), (WEATHER, CLOCK)):
            yield Conversation(turns, tools)
            yield Conversation((*turns, answer("All is grey.")), tools, generation_prompt=False)
    for tools in ((WEATHER,), (CLOCK, WEATHER)):
        yield Conversation((user("Hi"),), tools)
        yield Conversation((system("Be brief."), user("Hi")), tools, True)
    yield Conversation(one[:2], (WEATHER,), generation_prompt=False)


def as_dicts(conversation: Conversation, *, arguments_as_text: bool) -> list[dict[str, Any]]:
    """Write the messages as other programs take them."""
    return [_as_dict(message, arguments_as_text) for message in conversation.messages]


def _as_dict(message: Message, as_text: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        entry["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        entry["content"] = message.content or None
        entry["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if as_text else call.values(),
                },
            }
            for call in message.tool_calls
        ]
    return entry


def with_all_tokens(tokenizer: Tokenizer) -> TokenizerParts:
    """Add the marks of all families to a vocabulary of DeepSeek's."""
    spec = json.loads(tokenizer._parts.backend.to_str())
    spec["added_tokens"] += [
        added_token(tokenizer.vocab_size + i, token, flagged=True)
        for i, token in enumerate(OTHER_TOKENS)
    ]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return TokenizerParts(backend, special.BOS, (special.EOS,), special.PAD, add_bos=True)


def theirs(conversation: Conversation, other: Any, *, as_text: bool) -> list[int]:
    """Encode a conversation as users of transformers do.

    It takes a content of None away, and some templates ask for it to know a turn with calls: those
    are rendered as their publisher meant it.
    """
    asked = {} if conversation.thinking is None else {"thinking": conversation.thinking}
    asked |= {f"enable_{key}": value for key, value in asked.items()}
    turns = as_dicts(conversation, arguments_as_text=as_text)
    tools = [{"type": "function", "function": t.schema()} for t in conversation.tools] or None
    prompt = conversation.generation_prompt
    try:
        return other.apply_chat_template(
            turns, tools=tools, add_generation_prompt=prompt, return_dict=False, **asked
        )
    except UndefinedError:
        assert any(turn["content"] is None for turn in turns)
    known = {"eos_token": other.eos_token, "tools": tools, "add_generation_prompt": prompt, **asked}
    text = run_template(other.chat_template, turns, **known)
    return other(text, add_special_tokens=False)["input_ids"]
