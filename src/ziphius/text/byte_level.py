"""The letters that byte-level BPE writes bytes with (GPT-2), and pieces of a tokenizer.json."""

from collections.abc import Mapping, Sequence
from typing import Any


def _letters() -> dict[str, int]:
    """Give printable Latin-1 bytes their own letter, and the rest letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = {}, 0x100
    for byte in range(256):
        if byte in printable:
            letters[chr(byte)] = byte
        else:
            letters[chr(spare)] = byte
            spare += 1
    return letters


BYTE_OF_LETTER = _letters()
"""Letter of a byte-level vocabulary -> the byte it stands for."""


def spelled_bytes(token: str) -> bytes:
    """Return the bytes a token decodes to; a token with a foreign letter stands for itself."""
    letters = [BYTE_OF_LETTER.get(letter) for letter in token]
    known = [byte for byte in letters if byte is not None]
    return bytes(known) if len(known) == len(letters) else token.encode()


def added_token(token_id: int, content: str, *, flagged: bool) -> dict[str, Any]:
    """Describe one added token as tokenizer.json does; `flagged` as DeepSeek flags it.

    Only `flagged` ones are "special" to other programs (dropped by their skip_special_tokens).
    """
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": flagged,
    }


def tokenizer_json(
    vocab: Mapping[str, int],
    merges: Sequence[str],
    pre_tokenizer: Mapping[str, Any],
    added_tokens: Sequence[Mapping[str, Any]],
    *,
    ignore_merges: bool = False,
    normalizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Assemble the content of a tokenizer.json around a byte-level BPE."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": list(merges),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
