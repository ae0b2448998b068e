"""The header of a GGUF file: metadata and the list of tensors, read within bounds.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: magic,
version, number of tensors, number of metadata entries; the entries; names, dimensions (innermost
first), types and offsets of the tensors; then the data, aligned. The reader of the `gguf` package
trusts every count in the file and can be made to loop for ever, so this one counts bytes and items.
"""

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ziphius.core.errors import CheckpointError
from ziphius.core.reading import ErrorKind, open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_TENSOR_COUNT = 100_000
LARGEST_ENTRY_COUNT = 100_000
LARGEST_RANK = 4
LARGEST_HEADER_BYTES = 128 * 2**20
LARGEST_ITEM_COUNT = 2**22
"""Items of all metadata arrays together; a vocabulary of 262,144 has 1.4 million."""
LARGEST_LISTED = 1024
"""Longest metadata array that is kept unasked; the vocabulary's are else only stepped over."""

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | None
"""A metadata value; None stands for an array that was stepped over."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the header lists it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    """Outermost dimension first, as in torch."""
    type_number: int
    offset: int
    """Byte of the file where the data begins."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    file: Path
    size_bytes: int
    alignment: int
    data_begin: int
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]


def is_gguf_name(name: str) -> bool:
    """Say whether a file name ends in .gguf, in letters of either case."""
    return name.lower().endswith(".gguf")


def is_gguf_path(path: Path) -> bool:
    """Say whether a path names a GGUF file, there or not, and no folder."""
    return is_gguf_name(path.name) and not os.path.isdir(path)


def read_gguf_header(
    file: Path, *, keep: Collection[str] = (), error: ErrorKind = CheckpointError
) -> GgufHeader:
    """Read the header of a GGUF file, each key and each tensor once.

    Args:
        file: path of the file.
        keep: keys whose arrays are wanted at any length; their texts have to be UTF-8.
        error: what to raise if the header makes no sense.
    """
    with open_file(file, error) as stream:
        size = os.fstat(stream.fileno()).st_size
        reader = _Reader(file, stream, size, error)
        if reader.take(4) != MAGIC:
            reader.refuse("is no GGUF file: it does not begin with GGUF")
        version = reader.scalar("I")
        if version not in VERSIONS:
            reader.refuse(f"has GGUF version {version}; known are {VERSIONS}")
        tensor_count, entry_count = reader.scalar("Q"), reader.scalar("Q")
        if tensor_count > LARGEST_TENSOR_COUNT or entry_count > LARGEST_ENTRY_COUNT:
            reader.refuse(f"claims {tensor_count} tensors and {entry_count} metadata entries")
        metadata: dict[str, Value] = {}
        for _ in range(entry_count):
            key = reader.string()
            if key in metadata:
                reader.refuse(f"lists the metadata {key} twice")
            metadata[key] = reader.value(reader.scalar("I"), key in keep)
        listed = [_read_tensor(reader) for _ in range(tensor_count)]
        end = stream.tell()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        reader.refuse(f"has general.alignment {alignment}, which is no power of two")
    begin = -(-end // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_number, offset in listed:
        if name in tensors:
            reader.refuse(f"lists the tensor {name} twice")
        tensors[name] = GgufTensor(file, name, shape, type_number, begin + offset)
    return GgufHeader(file, size, alignment, begin, metadata, tensors)


def _read_tensor(reader: "_Reader") -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string()
    rank = reader.scalar("I")
    if not 1 <= rank <= LARGEST_RANK:
        reader.refuse(f"gives {name} {rank} dimensions")
    innermost_first = [reader.scalar("Q") for _ in range(rank)]
    return name, tuple(reversed(innermost_first)), reader.scalar("I"), reader.scalar("Q")


class _Reader:
    """Take values off a stream: no more bytes than the file has, nor than a header needs."""

    def __init__(self, file: Path, stream: BinaryIO, size: int, error: ErrorKind) -> None:
        self._file = file
        self._stream = stream
        self._error = error
        self._is_whole = size <= LARGEST_HEADER_BYTES
        self._left = min(size, LARGEST_HEADER_BYTES)
        self._items_left = LARGEST_ITEM_COUNT

    def take(self, count: int) -> bytes:
        self._spend(count)
        return self._stream.read(count)

    def scalar(self, code: str) -> int:
        number: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return number

    def string(self, errors: str = "replace") -> str:
        # Vocabularies hold pieces of characters; what is no UTF-8 is kept in a replaced form.
        return self.take(self.scalar("Q")).decode(errors=errors)

    def value(self, kind: int, keep: bool) -> Value:
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"), keep)
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            self.refuse(f"has metadata of the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int, keep: bool) -> Value:
        if kind != _STRING and kind not in _SCALARS:
            self.refuse(f"has a metadata array of the unknown type {kind}")
        # The least that so many items take: eight bytes of length, if they are strings.
        code = _SCALARS.get(kind, "Q")
        size = count * struct.calcsize("<" + code)
        if size > self._left:
            self._refuse_length("an array")
        self._items_left -= count
        if self._items_left < 0:
            self.refuse(f"lists more than {LARGEST_ITEM_COUNT:,} items of metadata")
        is_kept = keep or count <= LARGEST_LISTED
        if kind == _STRING:
            return self._strings(count, "strict" if keep else "replace", is_kept)
        if not is_kept:
            self._spend(size)
            self._stream.seek(size, os.SEEK_CUR)
            return None
        return list(struct.unpack(f"<{count}{code}", self.take(size)))

    def _strings(self, count: int, errors: str, is_kept: bool) -> Value:
        strings: list[Scalar] = []
        for index in range(count):
            try:
                string = self.string(errors)
            except UnicodeDecodeError:
                self.refuse(f"lists a text that is no UTF-8, number {index} of {count}")
            if is_kept:
                strings.append(string)
        return strings if is_kept else None

    def _spend(self, count: int) -> None:
        if count > self._left:
            self._refuse_length("its header")
        self._left -= count

    def _refuse_length(self, what: str) -> NoReturn:
        if self._is_whole:
            self.refuse(f"is truncated: {what} goes on beyond its end")
        self.refuse(f"has no header of a model: {what} goes on beyond {LARGEST_HEADER_BYTES} bytes")

    def refuse(self, reason: str) -> NoReturn:
        raise self._error(f"{self._file} {reason}.")
