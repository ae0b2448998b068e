"""What a tokenizer is made of, whichever file it came from, and which chat format it speaks."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from ziphius.text import special
from ziphius.text.chat.proof import format_of_template
from ziphius.text.chat.template import Source


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """A byte-level BPE with the names of its special tokens: what every reader of files returns."""

    backend: tokenizers.Tokenizer
    bos: str | None = None
    eos: tuple[str, ...] = ()
    pad: str | None = None
    add_bos: bool = False
    """A raw text starts with `bos`; chat formats place it themselves."""
    chat_format: str | None = None
    """As the file states it; a template beside it counts more where the two disagree."""
    told_by_tokens: bool = False
    """Nothing states a chat format, so that the added tokens are the only witness."""
    chat_template: str | None = None
    """The Jinja text of the file."""
    named_templates: Mapping[str, str] = field(default_factory=dict)
    """Further templates by their names, such as tool_use."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What generation_config.json says, ends of text included."""


def detect_chat_format(
    chat_template: str | None,
    tokens: Container[str],
    *,
    tool_use: str | None = None,
    named_tokens: Mapping[str, str | None] | None = None,
) -> str | None:
    """Name the chat format a vocabulary was made for; None if it is none of those known here.

    A template is run, in a process of its own, and decides alone: see `chat.proof`. Without one the
    tokens of the vocabulary are the witness.

    Args:
        chat_template: the file's Jinja text.
        tokens: the added tokens of the vocabulary.
        tool_use: a second template, for conversations with tools.
        named_tokens: what the template knows by name, such as "bos_token".
    """
    if chat_template:
        named = {name: text for name, text in (named_tokens or {}).items() if text is not None}
        return format_of_template(Source(chat_template, tool_use, tuple(sorted(named.items()))))
    if special.DSML in tokens:
        return "deepseek-v3.2"
    if special.USER in tokens and special.CALL_SEP in tokens:
        return "deepseek-r1" if special.THINK in tokens else "deepseek-v3"
    if special.USER in tokens and special.THINK in tokens:
        return "deepseek-r1"  # the Qwen and Llama students have no tool tokens
    return "chatml" if special.IM_START in tokens else None
