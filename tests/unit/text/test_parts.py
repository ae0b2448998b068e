"""Which chat format a vocabulary or a template speaks."""

import json
from pathlib import Path

import pytest

from ziphius.text import special
from ziphius.text.chat import CHAT_FORMATS, Message, get_chat_format
from ziphius.text.chat.packaged import packaged_template
from ziphius.text.parts import detect_chat_format

# Parts of published templates, such as a search for a mark would take for the whole.
QWEN25 = (
    "{%- if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n{%- else %}<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n{%- endif %}..."
)
QWEN3 = (
    "{%- for m in messages %}{%- set content = m.content %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{%- endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}"
)


def user(text: str) -> Message:
    return Message("user", text)


def test_a_template_that_only_looks_like_a_format_speaks_for_itself() -> None:
    for template in (QWEN25, QWEN3, LLAMA3, "{{'<|im_start|>' + message['role']}}"):
        name = detect_chat_format(template, ())
        assert name is not None
        assert name not in CHAT_FORMATS
        assert get_chat_format(name).name == name


def test_a_default_system_text_of_a_template_is_not_lost() -> None:
    name = detect_chat_format(QWEN25, ())
    assert name is not None
    assert "You are Qwen, created by" in get_chat_format(name).render([user("hi")])


def test_reasoning_of_past_turns_is_dropped_where_the_template_drops_it() -> None:
    name = detect_chat_format(QWEN3, ())
    assert name is not None
    chat_format = get_chat_format(name)
    answer = chat_format.parse("<think>\nlong thought\n</think>\n\nParis")
    assert (answer.reasoning_content, answer.content) == ("long thought", "Paris")
    written = Message("assistant", "<think>\nlong thought\n</think>\n\nParis")
    for past in (answer, written):
        text = chat_format.render([user("capital?"), past, user("?")], generation_prompt=True)
        assert "long thought" not in text
        assert "<|im_start|>assistant\nParis<|im_end|>" in text


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_our_own_templates_are_known_without_being_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIPHIUS_CHAT_TEMPLATES", "off")
    assert detect_chat_format(packaged_template(name), ()) == name
    assert detect_chat_format(packaged_template(name, add_bos=True), ()) == name


def test_a_broken_template_is_an_error_when_it_is_used() -> None:
    name = detect_chat_format("{% for m in messages %}", ())
    assert name is not None
    with pytest.raises(ValueError, match=r"TemplateSyntaxError.*Give another chat format"):
        get_chat_format(name).render([user("u")])


def test_the_published_template_of_v3_speaks_for_itself(data_folder: Path) -> None:
    v3 = json.loads((data_folder / "tokenizer/deepseek-v3/tokenizer_config.json").read_text())
    name = detect_chat_format(v3["chat_template"], (), named_tokens={"bos_token": special.BOS})
    assert name is not None
    ours = CHAT_FORMATS["deepseek-v3"].render([user("u")], generation_prompt=True)
    assert get_chat_format(name).render([user("u")], generation_prompt=True) == ours


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ({special.USER, special.CALL_SEP}, "deepseek-v3"),
        ({special.USER, special.CALL_SEP, special.THINK}, "deepseek-r1"),
        ({special.USER, special.THINK}, "deepseek-r1"),
        ({special.USER, special.THINK, special.DSML}, "deepseek-v3.2"),
        ({special.IM_START}, "chatml"),
        ({special.USER}, None),
        (set(), None),
    ],
)
def test_without_a_template_the_tokens_tell(tokens: set[str], name: str | None) -> None:
    assert detect_chat_format(None, tokens) == name
