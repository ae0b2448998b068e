"""What a tokenizer is made of, whichever file it came from, and which chat format it speaks."""

from collections.abc import Container
from dataclasses import dataclass

import tokenizers

from ziphius.text import special


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
    chat_template: str | None = None
    """The Jinja text of the file, never run: kept to be written back."""


def detect_chat_format(chat_template: str | None, tokens: Container[str]) -> str | None:
    """Name the chat format a vocabulary was made for; None if it is none of those known here.

    Args:
        chat_template: the file's Jinja text, searched for marks and never run.
        tokens: the added tokens of the vocabulary, the witness when there is no template.
    """
    if chat_template:
        return _format_of_template(chat_template)
    if special.DSML in tokens:
        return "deepseek-v3.2"
    if special.USER in tokens and special.CALL_SEP in tokens:
        return "deepseek-r1" if special.THINK in tokens else "deepseek-v3"
    if special.USER in tokens and special.THINK in tokens:
        return "deepseek-r1"  # the Qwen and Llama students have no tool tokens
    return "chatml" if special.IM_START in tokens else None


def _format_of_template(template: str) -> str | None:
    """Find the first mark that only one format has; the order matters."""
    marks = (
        (special.DSML, "deepseek-v3.2"),
        (special.ASSISTANT + special.END_THINK, "deepseek-v3.1"),
        (special.USER, "deepseek-r1" if special.END_THINK in template else "deepseek-v3"),
        ("### Instruction:", "deepseek-coder"),
        ("named SmolLM", "smollm2"),
        (special.IM_START, "chatml"),
        ("User: ", "deepseek-v2"),
    )
    return next((name for mark, name in marks if mark in template), None)
