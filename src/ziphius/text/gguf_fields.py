"""A vocabulary as the metadata of a GGUF file: `tokenizer.*`, the way back of `gguf_vocabulary`.

The file names its pre-tokenizer, and llama.cpp knows what each name means. So the name is found by
what it does: the one whose rules cut a text that is hard to cut just as this tokenizer does.
"""

import json
import sys
import unicodedata
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.text.byte_level import tokenizer_json
from ziphius.text.folder import written_template
from ziphius.text.parts import TokenizerParts
from ziphius.text.pretokenizers import IGNORE_MERGES, NFC_NORMALIZED, PRE_TOKENIZERS

GgufField = bool | int | str | list[str] | list[int]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""What llama.cpp makes of a token: text alone becomes a user-defined one, but never a control."""

_PREFIX = "tokenizer.ggml."
_END_KEYS = ("eos", "eot", "eom")
# Everything that the known rules treat apart: spaces and newlines in rows and at the end, runs of
# digits, contractions in both cases, marks and symbols, letters of scripts with and without case,
# a composed and a decomposed letter.
_PROBE = (
    "I've TOLD you: we'LL see, it's 1 22 333 4444 55555!  x=y+z;  $3.50  a_b \n\n \n\t\tif(a){b}"
    "\r\n ... ---- ###'s \u201cquoted\u201d caf\u00e9 cafe\u0301 \u0395\u03bb\u03bb\u03ac\u03b4"
    "\u03b1 \u041d\u0435\u0449\u043e \u6211\u60f3\u57281314\u5de5\u4f5c \u3072\u3089\u30ab\u30bf "
    "\ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u0915\u093e\u092e \u0661\u0662\u0663 \U0001f680 "
    "\u2460\u00bd x\u00b2 <div class='a'>\t it's\n  \u3002\uff01 end   "
)


def gguf_fields(parts: TokenizerParts, rows: int) -> dict[str, GgufField]:
    """Describe a vocabulary and how it is spoken.

    Args:
        parts: of the tokenizer.
        rows: of the model's embedding; those without a token get one that nothing makes.

    Raises:
        TokenizerError: the model has fewer rows than tokens, or llama.cpp has no name for how text
            is cut.
    """
    tokens, types = _tokens(parts.backend, rows)
    merges = json.loads(parts.backend.to_str())["model"]["merges"]
    fields: dict[str, GgufField] = {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": find_pre_tokenizer(parts.backend),
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}token_type": types,
        f"{_PREFIX}merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        f"{_PREFIX}add_bos_token": parts.add_bos,
        f"{_PREFIX}add_eos_token": False,
    }
    named = {
        "bos": parts.bos,
        "padding": parts.pad,
        **dict(zip(_END_KEYS, parts.eos, strict=False)),
    }
    ids = {role: parts.backend.token_to_id(token) for role, token in named.items() if token}
    fields |= {f"{_PREFIX}{role}_token_id": i for role, i in ids.items() if i is not None}
    if left_out := parts.eos[len(_END_KEYS) :]:
        print(
            f"GGUF has room for {len(_END_KEYS)} ends of text; left out: {', '.join(left_out)}.",
            file=sys.stderr,
        )
    if (template := written_template(parts)) is not None:
        fields["tokenizer.chat_template"] = template
    if parts.named_templates:
        fields["tokenizer.chat_templates"] = list(parts.named_templates)
        for name, text in parts.named_templates.items():
            fields[f"tokenizer.chat_template.{name}"] = text
    return fields


def find_pre_tokenizer(backend: tokenizers.Tokenizer) -> str:
    """Name the rules of llama.cpp that cut text as a tokenizer does.

    Raises:
        TokenizerError: there are none among those known here.
    """
    normalized, ignores_merges = _normalized(backend, _PROBE), backend.model.ignore_merges
    for name, component in PRE_TOKENIZERS.items():
        composed = unicodedata.normalize("NFC", _PROBE) if name in NFC_NORMALIZED else _PROBE
        if composed != normalized or ignores_merges != (name in IGNORE_MERGES):
            continue
        spec = tokenizer_json({}, [], component, [], ignore_merges=False, normalizer=None)
        known = tokenizers.Tokenizer.from_str(json.dumps(spec))
        if _cuts(known) == _cuts(backend):
            return name
    raise TokenizerError(
        "A GGUF file names how text is cut before the merges, and none of the names known here "
        f"({', '.join(PRE_TOKENIZERS)}) cuts as this tokenizer: llama.cpp would read other tokens."
    )


def _cuts(tokenizer: tokenizers.Tokenizer) -> list[str]:
    if tokenizer.pre_tokenizer is None:
        return [_PROBE]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)]


def _normalized(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    return text if tokenizer.normalizer is None else str(tokenizer.normalizer.normalize_str(text))


def _tokens(backend: tokenizers.Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """List the tokens of all rows and their types."""
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    largest = max(vocab.values())
    if largest >= rows:
        raise TokenizerError(
            f"The tokenizer has {largest + 1} tokens and the model {rows} rows, which a GGUF file "
            "cannot hold: take the tokenizer that the model was made with."
        )
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for token, i in vocab.items():
        tokens[i], types[i] = token, NORMAL
    for i, added in backend.get_added_tokens_decoder().items():
        types[i] = CONTROL if _is_control(added) else USER_DEFINED
    return tokens, types


def _is_control(token: Any) -> bool:
    """Tell what text must not make; DeepSeek's files flag but some of their own marks."""
    text = token.content
    brackets = (("<|", "|>"), ("<\uff5c", "\uff5c>"))
    return token.special or any(text.startswith(a) and text.endswith(z) for a, z in brackets)
