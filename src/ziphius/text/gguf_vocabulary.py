"""The vocabulary that a GGUF file carries: `tokenizer.ggml.*` of byte-level ("gpt2") models.

The file names its pre-tokenizer instead of describing it; `pretokenizers.PRE_TOKENIZERS` says what
each name means. Numbers of the file are checked against its size before they are followed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.core.errors import MissingExtraError, TokenizerError
from ziphius.text.byte_level import added_token, tokenizer_json
from ziphius.text.folder import backend_of
from ziphius.text.parts import TokenizerParts, detect_chat_format
from ziphius.text.pretokenizers import IGNORE_MERGES, NFC_NORMALIZED, PRE_TOKENIZERS

if TYPE_CHECKING:
    import gguf

_CONTROL, _USER_DEFINED = 3, 4
_PREFIX = "tokenizer.ggml."


def read_gguf(path: Path) -> TokenizerParts:
    """Build the BPE of a GGUF file.

    Raises:
        TokenizerError: the file is missing or no GGUF, or its vocabulary is of another kind or
            names a pre-tokenizer that is not known here.
    """
    fields = _fields(path)
    kind, pre = fields.get("model"), fields.get("pre", "default")
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
    names = {role: _special(fields, role, tokens, path) for role in ("bos", "eos", "padding")}
    eot = _special(fields, "eot", tokens, path)
    found = fields.get("chat_template")
    template = found if isinstance(found, str) else None
    return TokenizerParts(
        backend=backend_of(spec, path),
        bos=names["bos"],
        eos=tuple(dict.fromkeys(end for end in (names["eos"], eot) if end)),
        pad=names["padding"],
        add_bos=bool(fields.get("add_bos_token", False)),
        chat_format=detect_chat_format(template, {token["content"] for token in added}),
        chat_template=template,
    )


def _fields(path: Path) -> dict[str, Any]:
    """Read the `tokenizer.*` keys of the file's head, the prefix cut off."""
    if not path.is_file():
        raise TokenizerError(f"{path} is not a file. Give the path of a .gguf file.")
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("GGUF files need: pip install 'ziphius[quant]'.") from error

    class BoundedReader(gguf.GGUFReader):
        """Fail on a length that leads past the end, instead of counting up to it."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != count:
                raise ValueError(f"its head runs past the end of the file at byte {offset}")
            return found

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            # The library makes two arrays per string: 4 s for the lists of a vocabulary of 49,152.
            kinds = (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
            item_type = self._get(orig_offs, "u4")[0] if raw_type == kinds[0] else None
            if item_type != kinds[1] or self.byte_order == "S":
                return super()._get_field_parts(orig_offs, raw_type)
            count = int(self._get(orig_offs + 4, "u8")[0])
            parts = _cut_strings(self.data.data, orig_offs + 12, count)
            size = 12 + sum(8 + part.nbytes for part in parts)
            return size, parts, list(range(count)), list(kinds)

    try:
        return _contents(BoundedReader(path))
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise TokenizerError(
            f"{path} is not a GGUF file that can be read: {error}. It is cut off or damaged; copy "
            "it again."
        ) from error


def _cut_strings(data: memoryview, offset: int, count: int) -> list[memoryview]:
    """Return views of `count` strings that each follow their length in eight bytes."""
    strings = []
    for _ in range(count):
        start = offset + 8
        offset = start + int.from_bytes(data[offset:start], "little")
        if offset > len(data) or start > len(data):
            raise ValueError(f"its head runs past the end of the file at byte {start}")
        strings.append(data[start:offset])
    return strings


def _contents(reader: "gguf.GGUFReader") -> dict[str, Any]:
    return {
        key.removeprefix(_PREFIX).removeprefix("tokenizer."): field.contents()
        for key, field in reader.fields.items()
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
        added_token(i, tokens[i], flagged=kind == _CONTROL)
        for i, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED)
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
