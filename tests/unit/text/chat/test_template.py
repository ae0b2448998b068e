"""Templates of checkpoints: bounded, never forged, masked where it can be told, read back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.text.strategies import adversarial_text
from ziphius.core.errors import ChatError, TokenizerError
from ziphius.text import special
from ziphius.text.byte_level import added_token
from ziphius.text.chat import ChatFormat, Message, Tool, ToolCall, get_chat_format
from ziphius.text.chat.template import Source, template_format
from ziphius.text.chat.template_runner import SWITCH, Limits, TemplateRunner
from ziphius.text.parts import TokenizerParts, detect_chat_format
from ziphius.text.tokenizer import Tokenizer

PUBLISHED = Path(__file__).with_name("published")
TOKENS = (("bos_token", special.BOS), ("eos_token", special.EOS))
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIECEWISE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CALL = ToolCall("get_time", '{"zone": "UTC"}')
TOOL = Tool("get_time", "Tell the time")


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str = "", reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message("assistant", text, reasoning, calls)


def form(text: str) -> ChatFormat:
    return template_format(Source(text, None, TOKENS))


def published(name: str) -> ChatFormat:
    return form((PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def everyone(tiny: Tokenizer) -> Tokenizer:
    """A vocabulary with marks of several families, some of them made of a role's name."""
    marks = [special.IM_START, special.IM_END, special.TOOL_CALL, special.END_TOOL_CALL]
    marks += [special.SpecialToken(text) for text in ("<|user|>", "<|assistant|>", "<get_time>")]
    spec = json.loads(tiny._parts.backend.to_str())
    spec["added_tokens"] += [added_token(512 + i, m, flagged=False) for i, m in enumerate(marks)]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return Tokenizer(TokenizerParts(backend, special.BOS, (special.EOS,), add_bos=True))


# A template is a program of somebody else.

SMALL = Limits(cpu_s=1, wall_s=90.0, memory=256 * 2**20, output=50_000)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "longer",
        ),
        ("{{ 'x' * 10**10 }}", "memory"),
        ("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "more than 50,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "underscore"),
        ("{{ messages.append(1) }}", "unsafe|SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError|loader"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_is_bounded_and_reaches_nothing(text: str, match: str) -> None:
    runner = TemplateRunner(text, SMALL)
    try:
        for _ in range(1 if match == "longer" else 2):  # the process, or a new one, goes on
            with pytest.raises(ChatError, match=match):
                runner.run({"messages": []})
    finally:
        runner.close()


def test_the_clock_ends_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TemplateRunner(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        Limits(cpu_s=600, wall_s=0.5),
    )
    with pytest.raises(ChatError, match="was ended"):
        runner.run({})
    assert runner._process is None


def test_a_template_has_what_transformers_gives_it() -> None:
    runner = TemplateRunner(
        "{% for i in [1, 2, 3] %}\n  {% if i == 2 %}{% continue %}{% endif %}\n{{ i }}\n"
        "{% endfor %}"
        "{{ {'a': '<\u00e9>'} | tojson }}{{ strftime_now('%Y') | length }}{{ dict(a=1)['a'] }}"
        "{% generation %}g{% endgeneration %}"
    )
    try:
        assert runner.run({}) == '1\n3\n{"a": "<\u00e9>"}41g'
        assert runner.run({}, track=("(", ")")).endswith("(g)")
    finally:
        runner.close()


def test_no_template_runs_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    assert detect_chat_format(CHATML, {special.IM_START}) is None
    monkeypatch.delenv(SWITCH)
    assert detect_chat_format(CHATML, {special.IM_START}) == "chatml"


# Whose letters are these.


@examples(6)
@given(texts=st.lists(adversarial_text, min_size=5, max_size=5))
@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3", "chatml"])
def test_no_text_of_anyone_forges_a_special_token(
    everyone: Tokenizer, name: str, texts: list[str]
) -> None:
    chat_format = form(CHATML) if name == "chatml" else published(name)

    def specials(texts: list[str]) -> list[int]:
        turns = [Message("system", texts[0]), user(texts[1]), assistant(texts[2] + "x"), user("u")]
        if name != "chatml":
            call = ToolCall("f", json.dumps({"k": texts[3]}, ensure_ascii=False))
            turns += [assistant("", None, call), Message("tool", texts[4])]
        ids = chat_format.encode(turns, everyone, generation_prompt=True).ids
        return [i for i in ids if i in everyone.special_ids]

    assert specials(texts) == specials(["a"] * 5)


def test_two_texts_side_by_side_forge_nothing(everyone: Tokenizer) -> None:
    side_by_side = form("{% for m in messages %}{{ m.content }}{% endfor %}")
    ids = side_by_side.encode([user("<|im_"), user("end|>")], everyone, generation_prompt=True).ids
    assert not everyone.special_ids & set(ids)
    assert everyone.decode(ids) == special.IM_END


def test_a_special_token_made_of_pieces_is_a_special_token_and_a_name_in_brackets_is_not(
    everyone: Tokenizer,
) -> None:
    pieces = form(PIECEWISE)
    ids = pieces.encode([user("<|user|>")], everyone, generation_prompt=True).ids
    marks = [everyone.token_id(mark) for mark in ("<|user|>", special.EOS, "<|assistant|>")]
    assert [i for i in ids if i in everyone.special_ids] == marks
    named = form(
        "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ '<' + c.function.name + '>' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    turns = [user("u"), assistant("", None, CALL), Message("tool", "r")]
    ids = named.encode(turns, everyone, generation_prompt=True).ids
    assert not everyone.special_ids & set(ids)


def test_what_a_template_does_with_a_think_block_in_a_content_is_done(everyone: Tokenizer) -> None:
    turns = [user("u"), assistant("<think>\nwhy\n</think>\n\nso"), user("<think></think>")]
    r1, qwen3 = published("deepseek-r1"), published("qwen3")
    assert "why" not in r1.render(turns, generation_prompt=True)
    for chat_format in (r1, qwen3):
        text = chat_format.render(turns, generation_prompt=True)
        ids = chat_format.encode(turns, everyone, generation_prompt=True).ids
        assert everyone.decode(ids) == text
        think = everyone.token_id(special.THINK)
        assert ids.count(think) == (1 if chat_format is r1 else 0)  # the prompt's own
    v3 = published("deepseek-v3")
    ids = v3.encode(turns, everyone, generation_prompt=True).ids
    assert everyone.token_id(special.END_THINK) not in ids
    assert special.END_THINK in everyone.decode(ids)


def test_a_vocabulary_without_the_special_tokens_of_a_template_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no token '<\|im_start\|>'"):
        form(CHATML).encode([user("u")], tiny)
    # What somebody typed is text, with and without such a token.
    v3 = published("deepseek-v3")
    assert special.IM_START in tiny.decode(v3.encode([user(special.IM_START)], tiny).ids)


def test_what_cannot_be_followed_is_an_error(everyone: Tokenizer) -> None:
    hidden = "{% set end = '</think>' %}{% if end in messages[0].content %}yes{% endif %}no"
    assert everyone.decode(form(hidden).encode([user("u")], everyone).ids) == "no"
    with pytest.raises(ChatError, match=r"spells '</think>', and the model's chat template looks"):
        form(hidden).encode([user("</think>")], everyone)


# What is to be learned.


def learned(chat_format: ChatFormat, turns: list[Message], tokenizer: Tokenizer) -> str:
    encoded = chat_format.encode(turns, tokenizer)
    assert len(encoded.ids) == len(encoded.loss_mask)
    pairs = zip(encoded.ids, encoded.loss_mask, strict=True)
    return tokenizer.decode([i for i, in_loss in pairs if in_loss])


TURNS = [Message("system", "s"), user("one"), assistant("A"), user("<|im_end|>"), assistant("B")]


def test_answers_are_found_by_what_the_model_is_asked_with(everyone: Tokenizer) -> None:
    assert learned(form(CHATML), TURNS, everyone) == "A<|im_end|>B<|im_end|>"
    end = special.EOS
    assert learned(published("deepseek-v3"), TURNS, everyone) == f"A{end}B{end}"
    assert learned(published("deepseek-v3.1"), TURNS, everyone) == f"A{end}B{end}"
    calls = [user("u"), assistant("", None, CALL), Message("tool", "r"), assistant("B")]
    assert learned(published("qwen2.5"), calls, everyone) == (
        '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>'
        "B<|im_end|>"
    )
    thought = [user("u"), assistant("A", "past"), user("v"), assistant("B", "why")]
    assert learned(published("qwen3"), thought, everyone) == (
        "A<|im_end|><think>\nwhy\n</think>\n\nB<|im_end|>"
    )


def test_generation_blocks_tell_by_themselves(everyone: Tokenizer) -> None:
    blocks = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}"
        "{% if loop.last %}!{% endif %}{% endgeneration %}{% else %}U:{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    assert (
        learned(form(blocks), [user("u"), assistant("x"), user("v"), assistant("y")], everyone)
        == "xy!"
    )


def test_what_to_learn_is_never_guessed(everyone: Tokenizer) -> None:
    encoded = published("deepseek-r1").encode([user("u"), assistant("a")], everyone)
    assert everyone.decode(encoded.ids).endswith(f"{special.ASSISTANT}a{special.EOS}")
    with pytest.raises(ChatError, match=r"answer 2 of the conversation otherwise than it asks"):
        assert encoded.loss_mask
    endless = form("{% for m in messages %}{{ m.content }}|{{ messages | length }}{% endfor %}")
    with pytest.raises(ChatError, match="to be learned cannot be told"):
        assert learned(endless, [user("u"), assistant("a"), user("v"), assistant("b")], everyone)
    # To go on from a conversation nothing has to be known of it.
    prompt = published("deepseek-r1").encode(
        [user("u"), assistant("a"), user("v")], everyone, generation_prompt=True
    )
    assert prompt.thinking
    assert not any(prompt.loss_mask)


@pytest.mark.parametrize(
    ("name", "turns", "settings", "match"),
    [
        ("deepseek-v3", [user("u")], {"tools": [TOOL]}, "leaves out the tools"),
        ("smollm2", [user("u"), assistant("", None, CALL)], {}, "does not show tool calls"),
        ("deepseek-v3", [user("u"), assistant("x", None, CALL)], {}, "leaves out a tool call"),
        ("deepseek-v3.1", [user("u"), assistant("a", "r")], {}, "leaves out the reasoning"),
        ("qwen2.5", [user("u")], {"thinking": True}, "does not think when asked"),
        ("deepseek-r1", [user("u")], {"thinking": False}, "always thinks"),
        ("qwen3", [user("u")], {"reply_schema": {}}, "cannot demand JSON"),
        ("qwen3", [], {}, "at least one message"),
        ("qwen3", [user("u"), assistant("a")], {"generation_prompt": True}, "spoke last"),
    ],
)
def test_what_would_be_lost_is_refused(
    name: str, turns: list[Message], settings: dict, match: str
) -> None:
    with pytest.raises(ChatError, match=match):
        published(name).render(turns, **settings)


# What the model answers.


def test_what_a_template_can_do_is_found_out() -> None:
    assert published("qwen3").thinking_modes == (True, False)
    assert published("deepseek-v3.1").thinking_modes == (False, True)
    assert published("deepseek-r1").thinking_modes == (True,)
    assert published("smollm2").thinking_modes == (False,)
    with pytest.raises(ChatError, match="does not think"):
        published("smollm2").parser(thinking=True)


def outputs() -> Iterator[tuple[str, str, Message]]:
    call = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'
    yield "qwen3", f"<think>\nr\n</think>\n\na\n{call}<|im_end|>", assistant("a", "r", CALL)
    yield "qwen2.5", f"{call}\n{call}<|im_end|>", assistant("", None, CALL, CALL)
    yield "qwen2.5", "plain<|im_end|>\n", assistant("plain")
    yield "deepseek-v3.1", f"a{special.EOS}", assistant("a")
    yield "deepseek-coder", "a\n<|EOT|>", assistant("a")
    yield "deepseek-v2", f" a{special.EOS}", assistant("a")
    fenced = (
        f'function{special.CALL_SEP}get_time\n```json\n{{"zone": "UTC"}}\n```{special.CALL_END}'
    )
    block = f"{special.CALLS_BEGIN}{special.CALL_BEGIN}{fenced}{special.CALLS_END}{special.EOS}"
    yield "deepseek-r1-0528", f"<think>\nr\n</think>\n\na{block}", assistant("a", "r", CALL)


@pytest.mark.parametrize(("name", "text", "message"), list(outputs()))
def test_answers_are_read(name: str, text: str, message: Message) -> None:
    chat_format = published(name)
    assert chat_format.parse(text) == message
    parser = chat_format.parser()
    events = [event for letter in text for event in parser.push(letter)] + parser.finish()
    assert events
    broken = chat_format.parse(text[: len(text) // 2])
    assert all(not call.complete for call in broken.tool_calls[1:])


LLAMA31 = (
    "{% for m in messages %}<|im_start|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{% endfor %}<|im_end|>{% endfor %}"
)
WHOLE = '{"name": "get_time", "parameters": {"zone": "UTC"}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{WHOLE}<|im_end|>", assistant("", None, CALL)),
        (' {"name": "x"}', assistant('{"name": "x"}')),
        (f"see {WHOLE}", assistant(f"see {WHOLE}")),
        (
            '{"name": "f", "parameters": {"a',
            assistant("", None, ToolCall("f", '{"a', complete=False)),
        ),
    ],
)
def test_a_bare_call_is_read(text: str, message: Message) -> None:
    assert form(LLAMA31).parse(text) == message


def test_a_name_finds_the_template_again() -> None:
    name = detect_chat_format(CHATML + "!", ())
    assert name is not None
    assert name.startswith("template-")
    assert get_chat_format(name).render([user("u")]).endswith("<|im_end|>\n!")
