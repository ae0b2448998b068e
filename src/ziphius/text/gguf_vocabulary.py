"""The vocabulary that a GGUF file carries: `tokenizer.ggml.*` of byte-level ("gpt2") models.

The file names its pre-tokenizer instead of describing it; `pretokenizers.PRE_TOKENIZERS` says what
each name means. The header is read by `core.gguf_header`, which follows no number unchecked.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.core.gguf_parts import read_first_part
from ziphius.text.byte_level import added_token, spelled_bytes, tokenizer_json
from ziphius.text.folder import backend_of
from ziphius.text.gguf_fields import CONTROL, USER_DEFINED
from ziphius.text.parts import TokenizerParts
from ziphius.text.pretokenizers import IGNORE_MERGES, NFC_NORMALIZED, PRE_TOKENIZERS

_PREFIX = "tokenizer.ggml."
_TOKENS_LOOKED_AT = 2_000
_ENOUGH_TOKENS = 1_000
_MOST_CUT = 0.005
"""Share of tokens: a vocabulary has few that its own pre-tokenizer cuts, if any."""


def read_gguf(path: Path) -> TokenizerParts:
    """Build the BPE of a GGUF file.

    Raises:
        TokenizerError: the file is missing or no GGUF, or its vocabulary is of another kind or
            names a pre-tokenizer that is not known here.
    """
    fields = _fields(path)
    kind, pre = fields.get("model"), fields.get("pre") or "default"
    if kind != "gpt2":
        raise TokenizerError(
            f"{path} holds a vocabulary of kind {kind!r}; only byte-level BPE ('gpt2') is read."
        )
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{path} names the pre-tokenizer {pre!r}; known are {', '.join(PRE_TOKENIZERS)}."
        )
    tokens, merges = _strings(fields, "tokens", path), _strings(fields, "merges", path)
    added = _added(tokens, fields.get("token_type", []), fields, path)
    spec = tokenizer_json(
        {token: i for i, token in enumerate(tokens)},
        merges,
        PRE_TOKENIZERS[pre],
        added,
        ignore_merges=pre in IGNORE_MERGES,
        normalizer={"type": "NFC"} if pre in NFC_NORMALIZED else None,
    )
    backend = backend_of(spec, path)
    _warn_of_other_cuts(path, backend, fields, {token["content"] for token in added})
    names = {role: _special(fields, role, tokens, path) for role in ("bos", "eos", "padding")}
    further = [_special(fields, role, tokens, path) for role in ("eot", "eom")]
    found = fields.get("chat_template")
    template = found if isinstance(found, str) else None
    named = {
        key.removeprefix("chat_template."): text
        for key, text in fields.items()
        if key.startswith("chat_template.") and isinstance(text, str)
    }
    return TokenizerParts(
        backend=backend,
        bos=names["bos"],
        eos=tuple(dict.fromkeys(end for end in (names["eos"], *further) if end)),
        pad=names["padding"],
        add_bos=bool(fields.get("add_bos_token", False)),
        told_by_tokens=template is None,
        chat_template=template,
        named_templates=named,
    )


def _warn_of_other_cuts(
    path: Path, backend: tokenizers.Tokenizer, fields: Mapping[str, Any], added: set[str]
) -> None:
    """Say on stderr that texts are cut otherwise than the vocabulary was learned with.

    A piece of text that the pre-tokenizer cuts can never become one token. So a vocabulary with
    many such tokens was learned with another pre-tokenizer than the file names.
    """
    if not fields.get("pre"):
        print(
            f"{path} names no pre-tokenizer (tokenizer.ggml.pre). Text is cut by the default "
            "rules, as llama.cpp does: the model will answer worse. Convert it anew.",
            file=sys.stderr,
        )
        return
    cut, looked_at = _tokens_cut(backend, added)
    if looked_at >= _ENOUGH_TOKENS and cut > _MOST_CUT * looked_at:
        print(
            f"{path} names the pre-tokenizer {fields['pre']!r}, which cuts {cut} of {looked_at} "
            "tokens of its own vocabulary: it is another model's. The model will answer worse. "
            "Convert it anew.",
            file=sys.stderr,
        )


def _tokens_cut(backend: tokenizers.Tokenizer, added: set[str]) -> tuple[int, int]:
    """Count the tokens that the pre-tokenizer cuts, and those that were looked at."""
    cutter = backend.pre_tokenizer
    assert cutter is not None, "every name stands for one"
    tokens = [token for token in sorted(backend.get_vocab()) if token not in added]
    texts = []
    for token in tokens[:: max(1, len(tokens) // _TOKENS_LOOKED_AT)]:
        try:
            texts.append(spelled_bytes(token).decode())
        except UnicodeDecodeError:
            continue  # a part of a character
    return sum(len(cutter.pre_tokenize_str(text)) > 1 for text in texts), len(texts)


def _fields(path: Path) -> dict[str, Any]:
    """Read the `tokenizer.*` keys of the file's head, the prefix cut off."""
    lists = [f"{_PREFIX}{key}" for key in ("tokens", "merges", "token_type")]
    header = read_first_part(path, keep=lists, error=TokenizerError)
    return {
        key.removeprefix(_PREFIX).removeprefix("tokenizer."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.")
    }


def _strings(fields: Mapping[str, Any], key: str, path: Path) -> list[str]:
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenizerError(f"{path} has no list of strings under {_PREFIX}{key}.")
    if key == "tokens" and len(set(value)) != len(value):
        raise TokenizerError(f"{path} lists a token twice under {_PREFIX}{key}.")
    return value


def _added(
    tokens: list[str], types: list[int], fields: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    """Describe the tokens marked as control or user-defined."""
    if not isinstance(types, list) or len(types) != len(tokens):
        raise TokenizerError(
            f"{path} does not list a token type for each of its {len(tokens)} tokens under "
            f"{_PREFIX}token_type; the file is damaged."
        )
    return [
        added_token(i, tokens[i], flagged=kind == CONTROL)
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _special(fields: Mapping[str, Any], role: str, tokens: list[str], path: Path) -> str | None:
    token_id = fields.get(f"{role}_token_id")
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise TokenizerError(
            f"{path}: {_PREFIX}{role}_token_id {token_id} is no token of the list."
        )
    return tokens[token_id]
