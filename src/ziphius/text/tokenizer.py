"""Text to token ids and back for byte-level BPE, with no way to forge a special token.

A tokenizer file lists *added tokens*, such as <think> or the User token, that no merge makes. In
DeepSeek's files only some of them are flagged "special", so other programs turn a user's text that
spells the others into the tokens themselves. Here text is encoded by a twin that has the same
merges and no added tokens at all: whatever a user writes, only bytes and merges of bytes come out.
Where a special token belongs is the chat format's business, which places it by id.
"""

import json
from collections.abc import Container, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.core.gguf_header import is_gguf_path
from ziphius.text.byte_level import BYTE_OF_LETTER, spelled_bytes
from ziphius.text.chat import WrittenFormat, get_chat_format
from ziphius.text.chat.packaged import packaged_format
from ziphius.text.detokenizer import Detokenizer
from ziphius.text.folder import read_folder, write_folder
from ziphius.text.gguf_fields import GgufField, gguf_fields
from ziphius.text.gguf_vocabulary import read_gguf
from ziphius.text.parts import TokenizerParts, detect_chat_format

MAX_VOCAB_SIZE = 1_048_576
_REPLACEMENT = "\ufffd".encode()


class Tokenizer:
    """Encode and decode with one vocabulary; ids below `vocab_size` are the model's rows.

    `special_ids` are the added tokens, flagged special in the file or not: what text can never
    become. (An added token that merges make anyway is an ordinary one and not among them.)
    `special_tokens` are their texts with their ids. `eos_ids` end a generation; `bos_id`, `pad_id`,
    `chat_format` are None where the file has none.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._added = parts.backend.get_added_tokens_decoder()
        self._ids = {token.content: token_id for token_id, token in self._added.items()}
        self._plain, plain_ids = _without_added_tokens(parts.backend, self._ids)
        self.special_ids = frozenset(self._ids.values()) - plain_ids
        self.special_tokens = {t: i for t, i in self._ids.items() if i in self.special_ids}
        self._bytes = _byte_table(parts.backend)
        self.vocab_size = len(self._bytes)
        self.bos_id = None if parts.bos is None else self.token_id(parts.bos)
        self.eos_ids = tuple(self.token_id(token) for token in parts.eos)
        self.pad_id = None if parts.pad is None else self.token_id(parts.pad)
        self.add_bos = parts.add_bos
        is_ours, stated = _stated_format(parts, self._ids)
        if is_ours:
            self.chat_format = stated

    @cached_property
    def chat_format(self) -> str | None:
        """Name of the format the model speaks; None where the file has none.

        For a template that is not ours it is found out here, when it is asked for or never: the
        template is run for it, beside this process.
        """
        parts = self._parts
        named = {"bos_token": parts.bos, "eos_token": parts.eos[0] if parts.eos else None}
        found = detect_chat_format(
            parts.chat_template,
            self.special_tokens,
            tool_use=parts.named_templates.get("tool_use"),
            named_tokens={**named, "pad_token": parts.pad},
        )
        return parts.chat_format if found is None else found

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `tokenizer.json` and the settings beside it; no code of the folder is run."""
        return cls(read_folder(folder))

    @classmethod
    def from_gguf(cls, path: Path) -> Self:
        """Read the vocabulary inside a GGUF file."""
        return cls(read_gguf(path))

    def with_chat_format(self, name: str | None) -> Self:
        """Return the same vocabulary with another chat format as its own, and its end as the first.

        One that brought the template of just this format keeps it, and its ends.

        Raises:
            TokenizerError: the vocabulary has no token for the format's end.
        """
        parts = self._parts
        if name is not None and parts.chat_template is not None and name == self.chat_format:
            return self
        spoken = None if name is None else get_chat_format(name)
        ends = parts.eos
        if isinstance(spoken, WrittenFormat) and not spoken.ends_as_vocabulary:
            self.token_id(spoken.end)
            ends = tuple(dict.fromkeys((str(spoken.end), *parts.eos)))
        other = copy(self)
        other._parts = replace(
            parts,
            chat_format=name,
            told_by_tokens=False,
            chat_template=None,
            named_templates={},
            eos=ends,
        )
        other.eos_ids = tuple(self.token_id(token) for token in ends)
        other.chat_format = name
        return other

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of `text`; nothing is put before or after them.

        Args:
            text: any text that is valid Unicode. Bytes that the vocabulary lacks are dropped (the
                family's own vocabularies have all 256).
            allow_special: turn the spelling of an added token into the token. Only for text that
                no user and no model wrote.
        """
        backend = self._parts.backend if allow_special else self._plain
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise _not_unicode(text) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts, on all cores, with the guarantees of `encode`."""
        try:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise _not_unicode(next(text for text in texts if not _is_unicode(text))) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`, added tokens spelled out unless skipped.

        Bytes that are no UTF-8, and ids above the vocabulary (models round their rows up), become
        U+FFFD: a model can emit either, and a reader should see that it did.
        """
        skipped = self.special_ids if skip_special else frozenset()
        kept = (self._shown(token_id) for token_id in ids if token_id not in skipped)
        return b"".join(kept).decode("utf-8", errors="replace")

    def detokenizer(self, *, skip_special: bool = False) -> Detokenizer:
        """Return a decoder that takes one token at a time."""
        skipped = self.special_ids if skip_special else frozenset()
        return Detokenizer(lambda token_id: b"" if token_id in skipped else self._shown(token_id))

    def has_token(self, text: str) -> bool:
        """Say whether `text` is one of the added tokens."""
        return text in self._ids

    def token_id(self, text: str) -> int:
        """Return the id of an added token, such as <think>."""
        token_id = self._ids.get(text)
        if token_id is None:
            raise TokenizerError(
                f"The vocabulary has no token {text!r}. Use a tokenizer that was made for it, or "
                "another chat format."
            )
        return token_id

    def id_to_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for, which need not be whole characters."""
        found = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        if found is None:
            raise TokenizerError(
                f"There is no token {token_id}: the vocabulary has ids 0 to {self.vocab_size - 1}."
            )
        return found

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers loads too."""
        write_folder(folder, self._parts)

    def gguf_fields(self, rows: int) -> dict[str, GgufField]:
        """Return the metadata by which llama.cpp tokenizes as this vocabulary does.

        Args:
            rows: of the model's embedding, at least `vocab_size`.
        """
        return gguf_fields(self._parts, rows)

    def _shown(self, token_id: int) -> bytes:
        found = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        return _REPLACEMENT if found is None else found


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a model folder or of a .gguf file."""
    return Tokenizer.from_gguf(path) if is_gguf_path(path) else Tokenizer.from_folder(path)


def _stated_format(parts: TokenizerParts, tokens: Container[str]) -> tuple[bool, str | None]:
    """Say whether the chat format is known without running a template, and which it is."""
    if parts.chat_template is None:
        by_tokens = parts.told_by_tokens
        return True, detect_chat_format(None, tokens) if by_tokens else parts.chat_format
    ours = None if "tool_use" in parts.named_templates else packaged_format(parts.chat_template)
    return ours is not None, ours


def _without_added_tokens(
    backend: tokenizers.Tokenizer, added: dict[str, int]
) -> tuple[tokenizers.Tokenizer, frozenset[int]]:
    """Return the twin that makes no added token, and the ids merges make although they are added.

    Only an added token spelled in letters of the byte alphabet and listed in the BPE's own
    vocabulary could come out of it: through a merge (then it is an ordinary token), or whole, when
    the BPE takes known pieces whole (then the twin's BPE must not know it).
    """
    model = backend.model
    assert isinstance(model, tokenizers.models.BPE), "the readers accept no other model"
    own = [token for token in added if not set(token) - BYTE_OF_LETTER.keys()]
    suspects = {token for token in own if model.token_to_id(token) is not None}
    ordinary: set[str] = set()
    if suspects:
        spec = json.loads(backend.to_str())["model"]
        merges = [_pair(merge) for merge in spec["merges"]]
        ordinary = suspects & {*map("".join, merges), *BYTE_OF_LETTER}
        if model.ignore_merges:
            vocab = {t: i for t, i in spec["vocab"].items() if t not in suspects - ordinary}
            model = tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=True)
    twin = tokenizers.Tokenizer(model)
    twin.normalizer = backend.normalizer
    twin.pre_tokenizer = backend.pre_tokenizer
    return twin, frozenset(added[token] for token in ordinary)


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Read one merge, which files write as a string with a space or as a list of two."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _byte_table(backend: tokenizers.Tokenizer) -> list[bytes | None]:
    """List what each id stands for; None where a vocabulary leaves an id out."""
    vocab = backend.get_vocab(with_added_tokens=True)
    largest = max(vocab.values(), default=-1)
    if not 0 <= largest < MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"The vocabulary's largest id is {largest}; it must have tokens, at most "
            f"{MAX_VOCAB_SIZE}."
        )
    table: list[bytes | None] = [None] * (largest + 1)
    for token, token_id in vocab.items():
        table[token_id] = spelled_bytes(token)
    return table


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _not_unicode(text: str) -> TokenizerError:
    if not isinstance(text, str) or _is_unicode(text):
        return TokenizerError(f"Only text can be encoded, not {type(text).__name__}.")
    place = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    return TokenizerError(
        f"The text holds half of a UTF-16 pair at character {place}, which no UTF-8 can express. "
        "Read the text as UTF-8, or replace that character."
    )
