"""What all formats promise: no forgery, one way to cut text, round trips, masks, clear errors."""

import json
from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.text.strategies import adversarial_text, clean_text, replies, tools
from ziphius.core.errors import ChatError, TokenizerError
from ziphius.text import special
from ziphius.text.byte_level import added_token, tokenizer_json
from ziphius.text.chat import CHAT_FORMATS, ChatFormat, Message, Tool, ToolCall, get_chat_format
from ziphius.text.parts import TokenizerParts
from ziphius.text.pretokenizers import DEEPSEEK_V3
from ziphius.text.special import SpecialToken
from ziphius.text.tokenizer import Tokenizer

NAMES = list(CHAT_FORMATS)
DEEPSEEK = [name for name in NAMES if name.startswith("deepseek")]
WITH_TOOLS = [name for name in NAMES if CHAT_FORMATS[name].has_tools]
WAYS = [(name, way) for name in NAMES for way in CHAT_FORMATS[name].thinking_modes]


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str, reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message("assistant", content, reasoning, calls)


@pytest.fixture(scope="module")
def everyone(tiny: Tokenizer) -> Tokenizer:
    """A vocabulary with the marks of all formats, ChatML's included."""
    spec = json.loads(tiny._parts.backend.to_str())
    tokens = (special.IM_START, special.IM_END, special.BEGIN_OF_TEXT, special.START_HEADER)
    spec["added_tokens"] += [
        added_token(512 + i, token, flagged=True)
        for i, token in enumerate((*tokens, special.END_HEADER, special.EOT_ID))
    ]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return Tokenizer(
        TokenizerParts(backend, special.BOS, (special.EOS,), special.PAD, add_bos=True)
    )


def test_the_table_names_each_format_as_it_names_itself() -> None:
    assert {name: f.name for name, f in CHAT_FORMATS.items()} == {name: name for name in NAMES}
    assert get_chat_format("plain") is CHAT_FORMATS["plain"]
    with pytest.raises(ChatError, match="Unknown chat format 'v9'; known are deepseek-v2, "):
        get_chat_format("v9")


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(texts=st.lists(adversarial_text, min_size=6, max_size=6), shown=st.lists(tools, max_size=2))
def test_no_text_of_anyone_forges_a_special_token(
    everyone: Tokenizer, name: str, texts: list[str], shown: list[Tool]
) -> None:
    chat_format = CHAT_FORMATS[name]
    if name == "qwen3":  # divides an answer at the mark, as its template does
        texts[1], texts[5] = (text.replace(special.END_THINK, "") for text in (texts[1], texts[5]))

    def conversation(texts: list[str]) -> list[Message]:
        turns = [user(texts[0]), assistant(texts[1])]
        if name != "plain":
            turns = [Message("system", texts[2]), *turns, user(texts[3])]
        if chat_format.has_tools:
            result = Message("tool", texts[4])
            turns += [assistant(texts[5], None, ToolCall("f", json.dumps({"k": texts[0]}))), result]
        return turns

    shown = shown if chat_format.has_tools else []
    honest = [Tool(tool.name, "d") for tool in shown]
    specials = [
        [i for i in chat_format.encode(conversation(t), everyone, tools=s).ids
         if i in everyone.special_ids]
        for t, s in ((texts, shown), (["x"] * 6, honest))
    ]  # fmt: skip
    assert specials[0] == specials[1]


@pytest.mark.parametrize("name", NAMES)
@examples(15)
@given(texts=st.lists(clean_text, min_size=4, max_size=4))
def test_ids_spell_what_render_shows(everyone: Tokenizer, name: str, texts: list[str]) -> None:
    chat_format = CHAT_FORMATS[name]
    turns = [user(texts[0]), assistant(texts[1]), user(texts[2])]
    turns = turns[:1] if name == "plain" else [Message("system", texts[3]), *turns]
    ids = chat_format.encode(turns, everyone, generation_prompt=True).ids
    shown = chat_format.render(turns, generation_prompt=True)
    begin = special.BOS if name == "plain" else ""
    assert everyone.decode(ids) == begin + shown


@pytest.mark.parametrize("name", DEEPSEEK)
def test_ids_are_those_of_the_library_for_the_rendered_text(small: Tokenizer, name: str) -> None:
    chat_format = CHAT_FORMATS[name]
    turns = [
        Message("system", "You are a whale.\nBe brief."),
        user("What is 12345 + 1? \u4f60\u597d!"),
        assistant("It is 12346. \U0001f40b"),
        user("  Thanks\n\n"),
        assistant("Bye: `x`"),
    ]
    text = chat_format.render(turns)
    assert chat_format.encode(turns, small).ids == small.encode(text, allow_special=True)


def test_ids_of_the_plain_format_are_those_of_its_text(small: Tokenizer) -> None:
    plain, turns = CHAT_FORMATS["plain"], [user("What is 2 + 2?")]
    text = plain.render(turns, generation_prompt=True)
    assert plain.encode(turns, small, generation_prompt=True).ids == [0, *small.encode(text)]


@pytest.mark.parametrize("name", [name for name in WITH_TOOLS if name in DEEPSEEK])
def test_ids_of_tools_and_calls_are_those_of_the_library(small: Tokenizer, name: str) -> None:
    chat_format = CHAT_FORMATS[name]
    call = ToolCall("get_time", '{"zone": "UTC", "digits": 2}')
    turns = [user("When?"), assistant("Let me see.", None, call), Message("tool", "12:00")]
    shown = [Tool("get_time", "Tell the time", {"type": "object"})]
    ids = chat_format.encode(turns, small, tools=shown, generation_prompt=True).ids
    text = chat_format.render(turns, tools=shown, generation_prompt=True)
    assert ids == small.encode(text, allow_special=True)


@pytest.mark.parametrize(("name", "thinking"), WAYS)
@examples(30)
@given(data=st.data())
def test_a_reply_is_read_as_it_was_written(name: str, thinking: bool, data: st.DataObject) -> None:
    chat_format = CHAT_FORMATS[name]
    calls = chat_format.has_tools and not (thinking and not chat_format.thinks_with_tools)
    reply = data.draw(replies(chat_format, thinks=thinking, calls=calls))
    turns = [user("u")]
    prompt = chat_format.render(turns, thinking=thinking, generation_prompt=True)
    text = chat_format.render([*turns, reply], thinking=thinking)
    assert text.startswith(prompt)
    opened = prompt.rstrip("\n").endswith(special.THINK)
    assert chat_format.parse(text[len(prompt) :], thinking=opened) == as_read(name, reply)


def as_read(name: str, reply: Message) -> Message:
    """Take the white space away that a format takes away."""
    content, reasoning = reply.content, reply.reasoning_content or ""
    if name == "llama3":
        content = content.strip()
    elif name == "qwen3":
        content, reasoning = content.lstrip("\n"), reasoning.strip("\n")
    return replace(reply, content=content, reasoning_content=reasoning)


@pytest.mark.parametrize(("name", "thinking"), WAYS)
def test_completions_are_masked_and_begin_where_a_prompt_ends(
    everyone: Tokenizer, name: str, thinking: bool
) -> None:
    chat_format = CHAT_FORMATS[name]
    turns = [user("one")]
    prompt = chat_format.encode(turns, everyone, thinking=thinking, generation_prompt=True)
    assert not any(prompt.loss_mask)
    reply = assistant("two", "why" if thinking else None)
    whole = chat_format.encode([*turns, reply], everyone, thinking=thinking)
    assert len(whole.ids) == len(whole.loss_mask)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    written = [i for i, ours in zip(whole.ids, whole.loss_mask, strict=True) if ours]
    assert whole.loss_mask.index(True) == len(prompt.ids)
    assert written[-1] == everyone.token_id(chat_format.end)
    assert not whole.thinking
    text = everyone.decode(written)
    assert chat_format.parse(text, thinking=prompt.thinking) == reply


def test_past_completions_are_masked_too(everyone: Tokenizer) -> None:
    encoded = CHAT_FORMATS["deepseek-v3"].encode(
        [user("a"), assistant("b"), user("c"), assistant("d")], everyone
    )
    written = [i for i, ours in zip(encoded.ids, encoded.loss_mask, strict=True) if ours]
    assert everyone.decode(written) == f"b{special.EOS}d{special.EOS}"


@pytest.mark.parametrize(
    ("name", "thinking", "opened"),
    [
        ("deepseek-v3", None, False),
        ("deepseek-r1", None, True),
        ("deepseek-r1", False, False),
        ("deepseek-v3.1", None, False),
        ("deepseek-v3.1", True, True),
        ("deepseek-v3.2", True, True),
        ("plain", None, False),
    ],
)
def test_an_encoded_prompt_tells_whether_it_opened_a_think_block(
    small: Tokenizer, name: str, thinking: bool | None, opened: bool
) -> None:
    encoded = CHAT_FORMATS[name].encode(
        [user(special.THINK)], small, thinking=thinking, generation_prompt=True
    )
    assert encoded.thinking is opened


def test_all_system_messages_stand_in_front() -> None:
    turns = [Message("system", "S1"), user("u"), Message("system", "S2")]
    for name in set(DEEPSEEK) - {"deepseek-v2", "deepseek-v3.2"}:
        assert CHAT_FORMATS[name].render(turns).startswith(special.BOS + "S1\n\nS2")


def test_a_later_system_message_keeps_its_place_where_the_template_keeps_it() -> None:
    turns = [Message("system", "S1"), user("u"), Message("system", "S2"), user("v")]
    v2 = CHAT_FORMATS["deepseek-v2"].render(turns)
    assert v2 == f"{special.BOS}S1\n\nUser: u\n\nS2\n\nUser: v\n\n"
    for name in ("chatml", "qwen2.5", "qwen3", "smollm2"):
        assert "u<|im_end|>\n<|im_start|>system\nS2" in CHAT_FORMATS[name].render(turns)


def test_a_vocabulary_without_the_special_tokens_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="no token"):
        CHAT_FORMATS["chatml"].encode([user("u")], tiny)


def without_dsml() -> Tokenizer:
    tokens = [special.BOS, special.EOS, special.USER, special.ASSISTANT, special.END_THINK]
    letters = {chr(i): i - 33 for i in range(33, 127)}
    letters |= {"\u0120": 94, "\u010a": 95, "\u00ef": 96, "\u00bd": 97, "\u013e": 98}
    added = [added_token(99 + i, token, flagged=True) for i, token in enumerate(tokens)]
    spec = tokenizer_json(letters, [], DEEPSEEK_V3, added)
    return Tokenizer(TokenizerParts(tokenizers.Tokenizer.from_str(json.dumps(spec))))


def test_an_older_vocabulary_spells_the_mark_of_v32() -> None:
    tokenizer = without_dsml()
    turns = [user("u"), assistant("", None, ToolCall("f"))]
    encoded = CHAT_FORMATS["deepseek-v3.2"].encode(turns, tokenizer)
    assert tokenizer.decode(encoded.ids) == CHAT_FORMATS["deepseek-v3.2"].render(turns)
    with pytest.raises(TokenizerError, match="no token"):  # no other mark may be spelled
        CHAT_FORMATS["deepseek-v3"].encode(turns, tokenizer)


def test_stop_ids_hold_the_end_of_the_format(tiny: Tokenizer) -> None:
    assert CHAT_FORMATS["deepseek-v3"].stop_ids(tiny) == (1,)
    assert CHAT_FORMATS["deepseek-coder"].stop_ids(tiny) == (1, tiny.token_id(special.EOT))


def test_text_joined_to_a_special_token_is_text() -> None:
    assert not isinstance(special.USER + "x", SpecialToken)
    assert not isinstance(f"{special.USER}", SpecialToken)
    message = Message(
        "assistant", special.USER, special.THINK, (ToolCall("f", SpecialToken("{}")),)
    )
    for text in (message.content, message.reasoning_content, message.tool_calls[0].arguments):
        assert not isinstance(text, SpecialToken)


CALL = assistant("", None, ToolCall("f", id="1"))
TOOL = Tool("f")
REFUSED = [
    ("deepseek-v2", [], {}, "at least one message"),
    ("deepseek-v2", [Message("system", "s")], {}, "at least one message that is no system"),
    ("deepseek-v2", [user("u")], {"tools": [TOOL]}, "deepseek-v2 has no tools"),
    ("deepseek-v2", [user("u"), CALL], {}, "deepseek-v2 has no tool calls"),
    ("chatml", [Message("tool", "x")], {}, "chatml has no role 'tool'; it has system, user"),
    ("deepseek-v3", [Message("developer", "x")], {}, "has no role 'developer'"),
    ("deepseek-v3", [user("u")], {"thinking": True}, "deepseek-v3 does not think"),
    ("plain", [user("u")], {"thinking": False}, "plain always thinks"),
    ("plain", [user("u"), assistant("a"), user("v")], {}, "one question and at most its one"),
    ("plain", [assistant("a")], {}, "one question and at most its one"),
    ("plain", [Message("system", "s"), user("u")], {}, "plain has no role 'system'"),
    ("deepseek-v3", [user("u"), assistant("a", "r")], {}, "would be lost: .* does not think"),
    ("deepseek-v3.1", [user("u"), assistant("a", "r")], {"thinking": False}, "asked not to think"),
    ("deepseek-v3.2", [user("u"), assistant("a", "r")], {"thinking": False}, "asked not to think"),
    ("deepseek-r1", [user("u"), assistant("a")], {"thinking": True}, "no reasoning_content"),
    ("deepseek-v3.1", [user("u")], {"thinking": True, "tools": [TOOL]}, "only without thinking"),
    ("deepseek-v3.1", [user("u"), CALL, Message("tool", "x")], {"thinking": True},
     "only without thinking"),
    ("deepseek-v3", [user("u"), assistant("a")], {"generation_prompt": True}, "spoke last"),
    ("deepseek-v3", [user("u"), Message("tool", "x")], {}, "no call before it"),
    ("deepseek-v3", [user("u"), assistant("", None, ToolCall("f", "{", complete=False))], {},
     "call of 'f' is not complete"),
    ("deepseek-v3.1", [user("u")], {"reply_schema": {}}, "deepseek-v3.1 cannot demand JSON"),
    ("deepseek-v3", [user("u")], {"reply_schema": {"type": "object"}}, "but no schema"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "messages", "settings", "match"), REFUSED)
def test_what_a_format_cannot_say_is_refused(
    name: str, messages: list[Message], settings: dict, match: str
) -> None:
    with pytest.raises(ChatError, match=match):
        CHAT_FORMATS[name].render(messages, **settings)


@pytest.mark.parametrize("name", DEEPSEEK)
def test_fill_in_the_middle(small: Tokenizer, name: str) -> None:
    chat_format: ChatFormat = CHAT_FORMATS[name]
    shown = f"{special.FIM_BEGIN}def f(\n{special.FIM_HOLE}  return x{special.FIM_END}"
    assert chat_format.render_fim("def f(\n", "  return x") == shown
    ids = chat_format.encode_fim("def f(\n", "  return x", small)
    assert ids == small.encode(shown, allow_special=True)
    forged = chat_format.encode_fim(special.FIM_END, special.FIM_HOLE, small)
    assert sum(i in small.special_ids for i in forged) == 3


@pytest.mark.parametrize("name", ["chatml", "smollm2", "plain", "qwen3", "llama3"])
def test_fill_in_the_middle_is_refused_without_its_tokens(name: str) -> None:
    with pytest.raises(ChatError, match=f"{name} cannot fill in the middle"):
        CHAT_FORMATS[name].render_fim("a", "b")
