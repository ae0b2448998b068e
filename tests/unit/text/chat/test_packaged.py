"""Each format of ours has a template that writes the same, for the programs that read what we save.

Held together through transformers, from a folder as we save it.
"""

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.unit.text.chat.conversations import conversations, theirs, with_all_tokens
from ziphius.core.errors import ChatError
from ziphius.text.chat import CHAT_FORMATS, Message
from ziphius.text.chat.packaged import packaged_templates
from ziphius.text.parts import TokenizerParts
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[4]
# One question makes a conversation there; elsewhere dozens are written.
FEW = {"plain": 20}


@pytest.fixture(scope="module")
def everyone(small: Tokenizer) -> TokenizerParts:
    return with_all_tokens(small)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_transformers_writes_what_a_format_writes(
    everyone: TokenizerParts, tmp_path: Path, name: str
) -> None:
    from transformers import AutoTokenizer

    Tokenizer(everyone).with_chat_format(name).save(tmp_path)
    loaded, other = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_format == name
    assert other.eos_token_id == loaded.eos_ids[0]
    equal = 0
    for conversation in conversations():
        messages, tools, thinking, prompt = conversation
        settings = {"tools": tools, "thinking": thinking, "generation_prompt": prompt}
        try:
            ours = CHAT_FORMATS[name].encode(messages, loaded, **settings).ids
        except ChatError:
            continue
        as_text = name not in ("qwen2.5", "deepseek-v3.2")
        expected = theirs(conversation, other, as_text=as_text)
        if is_text_alone(name, messages):
            ours, expected = loaded.decode(ours), loaded.decode(expected)
        assert ours == expected, (conversation, ours, expected)
        equal += 1
    assert equal >= FEW.get(name, 40)


def is_text_alone(name: str, messages: Sequence[Message]) -> bool:
    """Tell where we cut a text otherwise than transformers, on purpose.

    The tags of `plain` are text to us, also in a vocabulary with such tokens. And an answer begins
    where its prompt ends: Coder's line break before an empty one does not join the answer's own.
    """
    empty = any(message.role == "assistant" and not message.content for message in messages)
    return name == "plain" or (name == "deepseek-coder" and empty)


def test_each_format_has_a_template_and_each_template_is_packaged() -> None:
    assert set(packaged_templates()) == set(CHAT_FORMATS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["ziphius"]
    source = ROOT / "src" / "ziphius"
    found = [str(path.relative_to(source)) for path in source.rglob("*.jinja")]
    assert len(found) == len(CHAT_FORMATS)
    assert [path for path in found if not any(fnmatch(path, glob) for glob in globs)] == []
