"""The number formats of GGUF files, packed and unpacked by the `gguf` package (extra `quant`)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ziphius.core.errors import CheckpointError, MissingExtraError
from ziphius.core.gguf_header import GgufTensor

READ = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
)
"""Formats that are read."""

LARGEST_WRITTEN = {
    "F32": float("inf"),
    "F16": 65_504.0,
    "BF16": torch.finfo(torch.bfloat16).max,
    # A block's scale is a float16, and its numbers are at most 127 and 8 times that.
    "Q8_0": 127 * 65_504.0,
    "Q4_0": 8 * 65_504.0,
}
"""Formats that are written, and the largest number each can hold."""

BLOCK = 32
"""Numbers of a block of Q8_0 or Q4_0, along a row."""

# Numbers worked on at once: 16 MiB of float32, little beside a model.
_CHUNK = 4 * 2**20


def package() -> Any:
    """Import `gguf`, or say what to install."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        message = "GGUF files need the gguf package: pip install 'ziphius[quant]'."
        raise MissingExtraError(message) from error
    return gguf


def size_bytes(entry: GgufTensor) -> int:
    """Return how many bytes of its file a tensor takes, in a format that can be read."""
    gguf = package()
    try:
        kind = gguf.GGMLQuantizationType(entry.type_number)
    except ValueError:
        number = entry.type_number
        raise CheckpointError(
            f"{entry.file} stores {entry.name} in the unknown format number {number}."
        ) from None
    if kind.name not in READ:
        raise CheckpointError(
            f"{entry.file} stores {entry.name} as {kind.name}; known are {', '.join(READ)}."
        )
    numbers_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    if not all(entry.shape) or entry.shape[-1] % numbers_per_block:
        raise CheckpointError(
            f"{entry.file} gives {entry.name} the shape {list(entry.shape)}, no whole {kind.name}."
        )
    return math.prod(entry.shape) // int(numbers_per_block) * int(bytes_per_block)


def decode(entry: GgufTensor) -> Tensor:
    """Read a tensor as float32, in pieces, because decoding takes several times its memory."""
    gguf = package()
    kind = gguf.GGMLQuantizationType(entry.type_number)
    row_count = math.prod(entry.shape[:-1])
    row_bytes = size_bytes(entry) // row_count
    data = np.memmap(entry.file, np.uint8, "r", entry.offset, (row_count, row_bytes))
    values = torch.empty(data.shape[0], entry.shape[-1])
    rows = max(1, _CHUNK // entry.shape[-1])
    for first in range(0, data.shape[0], rows):
        piece = gguf.dequantize(np.array(data[first : first + rows]), kind)
        values[first : first + rows] = torch.from_numpy(piece)
    return values.view(entry.shape)


def packed_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Return the shape of a tensor whose rows are packed: bytes along the last dimension."""
    gguf = package()
    packed = gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind])
    return tuple(map(int, packed))


def encode(tensor: Tensor, kind: str, name: str) -> Any:
    """Pack a tensor into an array of bytes, in pieces.

    Raises:
        CheckpointError: it holds NaN, infinity or a number that is too large for the format.
    """
    gguf = package()
    number_format = gguf.GGMLQuantizationType[kind]
    packed = np.empty(packed_shape(tuple(tensor.shape), kind), np.uint8)
    flat, rows_of_bytes = tensor.reshape(-1, tensor.shape[-1]), packed.reshape(-1, packed.shape[-1])
    rows = max(1, _CHUNK // tensor.shape[-1])
    for first in range(0, flat.shape[0], rows):
        piece = flat[first : first + rows].detach().to("cpu", torch.float32, copy=True)
        largest = float(piece.abs().amax())
        if not largest <= min(LARGEST_WRITTEN[kind], torch.finfo(torch.float32).max):
            raise CheckpointError(
                f"{name} holds {largest:.4g}, and {kind} has room up to {LARGEST_WRITTEN[kind]:.4g}"
                ": write bfloat16, or mend the model."
            )
        content = gguf.quantize(piece.contiguous().numpy(), number_format)
        rows_of_bytes[first : first + rows] = np.ascontiguousarray(content).view(np.uint8)
    return packed
