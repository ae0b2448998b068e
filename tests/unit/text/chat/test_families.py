"""Twelve published template families: our ids and transformers', from the same saved folder.

Where the templates were held against copies that others keep: Qwen2.5 and Qwen3 are, byte for byte,
those in TRL 1.16; V2.5 is the one that the Berkeley function-calling leaderboard quotes, but for
blanks between tags. V3.2 has none: our format equals its Python encoder, as mlx-lm 0.32 carries it,
on all of these conversations that both can say, in both modes.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.text.chat.conversations import conversations, theirs, with_all_tokens
from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat import CHAT_FORMATS, get_chat_format
from ziphius.text.parts import TokenizerParts
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

PUBLISHED = Path(__file__).with_name("published")
ENDS = {"qwen2.5": special.IM_END, "qwen3": special.IM_END, "smollm2": special.IM_END}
# Which of our formats is proven to be a template; the others run as they are.
PROVEN = {
    "deepseek-v2": "deepseek-v2",
    "deepseek-v2.5": "template",
    "deepseek-v3": "template",
    "deepseek-r1": "template",
    "deepseek-r1-0528": "template",
    "deepseek-v3.1": "template",
    "deepseek-v3.2": "deepseek-v3.2",  # published without one: ours is written
    "deepseek-coder": "template",
    "qwen2.5": "qwen2.5",
    "qwen3": "qwen3",
    "llama3": "llama3",
    "smollm2": "smollm2",
}
LEAST = 40


@pytest.fixture(scope="module")
def everyone(small: Tokenizer) -> TokenizerParts:
    return with_all_tokens(small)


def folder_of(family: str, everyone: TokenizerParts, folder: Path) -> Path:
    """Save a tokenizer of a family as its publisher does; V3.2's as we do."""
    bos = special.BEGIN_OF_TEXT if family == "llama3" else special.BOS
    end = special.EOT_ID if family == "llama3" else ENDS.get(family, special.EOS)
    parts = replace(everyone, bos=bos, eos=(end,))
    path = PUBLISHED / f"{family}.jinja"
    if path.is_file():
        parts = replace(parts, chat_template=path.read_text(encoding="utf-8").removesuffix("\n"))
        Tokenizer(parts).save(folder)
    else:
        Tokenizer(parts).with_chat_format(family).save(folder)
    return folder


def equal_and_refused(loaded: Tokenizer, other: Any, *, as_text: bool) -> Iterator[bool]:
    """Yield True for a conversation with equal ids, False for one that is refused."""
    assert loaded.chat_format is not None
    chat_format = get_chat_format(loaded.chat_format)
    for conversation in conversations():
        try:
            ours = chat_format.encode(
                conversation.messages,
                loaded,
                tools=conversation.tools,
                thinking=conversation.thinking,
                generation_prompt=conversation.generation_prompt,
            ).ids
        except ChatError:
            yield False
            continue
        expected = theirs(conversation, other, as_text=as_text)
        assert ours == expected, (conversation, loaded.decode(ours), loaded.decode(expected))
        yield True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", PROVEN)
def test_ids_are_those_of_transformers(
    everyone: TokenizerParts, tmp_path: Path, family: str
) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(family, everyone, tmp_path / "model")
    loaded, other = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    name = loaded.chat_format if loaded.chat_format in CHAT_FORMATS else "template"
    assert name == PROVEN[family]
    as_text = family not in ("qwen2.5", "deepseek-v3.2")
    assert sum(equal_and_refused(loaded, other, as_text=as_text)) >= LEAST
