"""The header of a GGUF file: metadata and the list of tensors, read within bounds.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: magic,
version, number of tensors, number of metadata entries; the entries; names, dimensions (innermost
first), types and offsets of the tensors; then the data, aligned. The reader of the `gguf` package
trusts every count in the file and can be made to loop for ever, so this one counts bytes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ziphius.core.errors import CheckpointError
from ziphius.models.weights.paths import regular_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_TENSOR_COUNT = 100_000
LARGEST_ENTRY_COUNT = 100_000
LARGEST_RANK = 4
LARGEST_LISTED = 1024
"""Longest metadata array that is kept; the vocabulary's are only stepped over."""

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


def read_gguf_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file, each key and each tensor once."""
    size = regular_file(file).stat().st_size
    with file.open("rb") as stream:
        reader = _Reader(file, stream, size)
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
            metadata[key] = reader.value(reader.scalar("I"))
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
        tensors[name] = GgufTensor(name, shape, type_number, begin + offset)
    return GgufHeader(file, size, alignment, begin, metadata, tensors)


def _read_tensor(reader: "_Reader") -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string()
    rank = reader.scalar("I")
    if not 1 <= rank <= LARGEST_RANK:
        reader.refuse(f"gives {name} {rank} dimensions")
    innermost_first = [reader.scalar("Q") for _ in range(rank)]
    return name, tuple(reversed(innermost_first)), reader.scalar("I"), reader.scalar("Q")


class _Reader:
    """Take values off a stream and never more bytes than the file has."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self._file = file
        self._stream = stream
        self._left = size

    def take(self, count: int) -> bytes:
        if count > self._left:
            self.refuse("is truncated: its header goes on beyond its end")
        self._left -= count
        return self._stream.read(count)

    def scalar(self, code: str) -> int:
        number: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return number

    def string(self) -> str:
        # Vocabularies hold pieces of characters; what is no UTF-8 is kept in a replaced form.
        return self.take(self.scalar("Q")).decode(errors="replace")

    def value(self, kind: int) -> Value:
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            self.refuse(f"has metadata of the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> Value:
        if kind == _STRING:
            if count * 8 > self._left:
                self.refuse("is truncated: an array of strings goes on beyond its end")
            strings: list[Scalar] = [self.string() for _ in range(count)]
            return strings if count <= LARGEST_LISTED else None
        if kind not in _SCALARS:
            self.refuse(f"has a metadata array of the unknown type {kind}")
        code = _SCALARS[kind]
        data = self.take(count * struct.calcsize("<" + code))
        if count > LARGEST_LISTED:
            return None
        return list(struct.unpack(f"<{count}{code}", data))

    def refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self._file} {reason}.")
