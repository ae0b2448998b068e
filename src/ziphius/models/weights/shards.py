"""What the safetensors files of a folder say about themselves, checked before a tensor is read.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a header, the
header as JSON {name: {dtype, shape, data_offsets}}, then the data without a gap. Several files are
held together by `model.safetensors.index.json`, whose `weight_map` names the file of every tensor.
"""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import torch

from ziphius.core.errors import CheckpointError
from ziphius.core.gguf_header import is_gguf_name
from ziphius.core.reading import file_inside, list_folder, open_file, parse_object, read_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ONLY_FILE = "model-00001-of-00001.safetensors"
"""The one file of programs that number it all the same, and write no index beside it."""
_SUFFIX = ".safetensors"

LARGEST_HEADER_BYTES = 32 * 2**20
LARGEST_TENSOR_COUNT = 200_000  # R1 has 92,000
LARGEST_RANK = 8

DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
}
"""Types that weights and scales may be stored in."""

# Formats that can run code while they are opened. They are named here to be refused.
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Stored:
    """One tensor as the header of its file describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Byte of the file that its numbers begin at."""


def stored_tensors(folder: Path, repeated: Collection[str] = ()) -> dict[str, Stored]:
    """Read the headers of all weight files of a folder and merge them, each name once.

    Args:
        folder: of the model.
        repeated: tensors that files may hold or leave out, as what they say stands elsewhere too;
            programs that drop or add them leave the index as it was.
    """
    weight_map = _weight_map(folder)
    if weight_map is None:
        names = [
            WEIGHTS_FILE if WEIGHTS_FILE in list_folder(folder, CheckpointError) else ONLY_FILE
        ]
    else:
        names = sorted(set(weight_map.values()))
    stored: dict[str, Stored] = {}
    for name in names:
        for tensor, entry in read_header(file_inside(folder, name, CheckpointError)).items():
            if tensor in stored:
                _refuse(entry.file, f"holds {tensor}, which {stored[tensor].file.name} holds too")
            stored[tensor] = entry
    if weight_map is not None:
        _check_index(folder / INDEX_FILE, weight_map, stored, repeated)
    return stored


def read_header(file: Path) -> dict[str, Stored]:
    """Read the header of one safetensors file and hold it to the size of the file."""
    with open_file(file, CheckpointError) as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            _refuse(file, f"is no safetensors file: it has {size} bytes and no header")
        length = int.from_bytes(prefix, "little")
        if length > min(size - 8, LARGEST_HEADER_BYTES):
            _refuse(file, f"claims a header of {length} bytes; it is truncated or damaged")
        header = parse_object(stream.read(length), f"{file}: its header", CheckpointError)
    header.pop("__metadata__", None)
    if len(header) > LARGEST_TENSOR_COUNT:
        _refuse(file, f"lists {len(header)} tensors; more than {LARGEST_TENSOR_COUNT} is no model")
    spans = {name: _span(file, name, entry) for name, entry in header.items()}
    _check_spans(
        file, [(*span, name) for name, span in spans.items()], data_bytes=size - 8 - length
    )
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + spans[name][0])
        for name, entry in header.items()
    }


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Read which file holds which tensor; None for a folder with one weight file."""
    names = list_folder(folder, CheckpointError)
    has_index, has_single = INDEX_FILE in names, WEIGHTS_FILE in names
    if has_index and has_single:
        _refuse(folder, f"holds both {WEIGHTS_FILE} and {INDEX_FILE}; remove the stale one")
    if not has_index:
        if not has_single and [name for name in names if name.endswith(_SUFFIX)] != [ONLY_FILE]:
            _refuse_without_weights(folder, names)
        return None
    index = file_inside(folder, INDEX_FILE, CheckpointError)
    content = read_object(index, LARGEST_HEADER_BYTES, CheckpointError)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "has no weight_map from tensor names to file names")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(_SUFFIX):
            _refuse(index, f"puts {tensor} into {name!r}, which is no .safetensors file")
    return weight_map


def _refuse_without_weights(folder: Path, names: list[str]) -> NoReturn:
    unsafe = [name for name in names if name.endswith(_UNSAFE_SUFFIXES)]
    if any(name.endswith(_SUFFIX) for name in names):
        _refuse(folder, f"holds safetensors files but neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    gguf = [name for name in names if is_gguf_name(name)]
    if gguf:
        _refuse(
            folder, f"holds no safetensors but the GGUF file {gguf[0]}: give the path of that file"
        )
    if unsafe:
        _refuse(
            folder,
            f"holds its weights only as {unsafe[0]}, a format that can run code when it is opened "
            "and is never read here; convert it to safetensors with the program that wrote it",
        )
    _refuse(folder, f"holds no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _check_index(
    index: Path, weight_map: dict[str, str], stored: dict[str, Stored], repeated: Collection[str]
) -> None:
    for tensor, name in weight_map.items():
        is_there = tensor in stored and stored[tensor].file.name == name
        if not is_there and tensor not in repeated:
            _refuse(index, f"puts {tensor} into {name}, which does not hold it")
    for tensor, entry in stored.items():
        if tensor not in weight_map and tensor not in repeated:
            _refuse(index, f"does not list {tensor}, which {entry.file.name} holds")


def _span(file: Path, name: str, entry: object) -> tuple[int, int]:
    """Check the entry of one tensor and return where its data begins and ends."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            _refuse(file, f"has no dtype, shape and data_offsets for {name}")
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        _refuse(file, f"stores {name} as {dtype}; weights may be {known}")
    numbers = [*shape, begin, end]
    if len(shape) > LARGEST_RANK or not all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    ):
        _refuse(file, f"gives {name} an impossible shape or place: {shape!s:.60}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        _refuse(file, f"gives {name} {end - begin} bytes, which do not hold {dtype} {shape}")
    return begin, end


def _check_spans(file: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Let tensors cover the data exactly: no gap, no overlap, no byte missing or left over."""
    spans = sorted(spans)
    for (_, end, name), (begin, _, following) in pairwise([(0, 0, "the header"), *spans]):
        if begin != end:
            _refuse(file, f"has a gap or an overlap between {name} and {following}")
    end, last = (spans[-1][1], spans[-1][2]) if spans else (0, "the header")
    if end > data_bytes:
        _refuse(file, f"is truncated: {last} ends at {end} of only {data_bytes} data bytes")
    if end < data_bytes:
        _refuse(file, f"has {data_bytes - end} bytes after {last}, which no tensor uses")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"{path} {reason}.")
