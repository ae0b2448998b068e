"""The numbers of safetensors files, read straight to where they belong in a model.

Files are read and not mapped: the pages of a mapped file count as memory of the process that looks
at them, up to a whole file beside the model, and a file that is cut meanwhile would end the process
by a signal. Whatever the types of file and model, a few megabytes lie between the two; a tensor in
FP8 alone is held whole while it is multiplied out.
"""

import io
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from ziphius.core.errors import CheckpointError
from ziphius.core.reading import open_file
from ziphius.models.weights.fp8 import dequantize
from ziphius.models.weights.matching import FP8
from ziphius.models.weights.names import SCALE_SUFFIX
from ziphius.models.weights.shards import DTYPES, Stored

HINT_BYTES = 2**18
"""Of a longer hint Linux drops the end."""
PIECE_BYTES = 4 * 2**20
"""Read at once: it stays in a CPU's cache until it has been copied."""


class TensorReader:
    """Read tensors of several files with one file open at a time.

    Args:
        stored: what the files hold, checked.
        files: closes the last file.
    """

    def __init__(self, stored: Mapping[str, Stored], files: ExitStack) -> None:
        self._stored, self._files = stored, files
        self._hinted: dict[Path, int] = {}
        self._kept = ExitStack()
        weakref.finalize(self, self._kept.close)
        self._open: tuple[Path, BinaryIO] | None = None

    def fill(self, name: str, place: Tensor) -> None:
        """Copy a tensor of a file to its place, in the dtype and on the device of that."""
        entry = self._stored[name]
        if place.is_cpu and place.is_contiguous() and place.dtype == DTYPES[entry.dtype]:
            _read(self._stream(entry.file), entry.file, entry.offset, place)
            return
        for part, numbers in self._parts(name, place):
            part.copy_(numbers)

    def announce(self, name: str) -> None:
        """Tell the system that `fill` will read this tensor soon: all but scales, which are few.

        Where it takes no such hint, or the file is gone, nothing happens: `fill` says what is
        wrong.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        entry = self._stored[name]
        size = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        with suppress(OSError, CheckpointError):
            descriptor = self._descriptor(entry.file)
            for start in range(entry.offset, entry.offset + size, HINT_BYTES):
                length = min(HINT_BYTES, entry.offset + size - start)
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, file: Path) -> int:
        """Return an open file that only hints are given for, so that reading may change files."""
        if file not in self._hinted:
            stream = self._kept.enter_context(open_file(file, CheckpointError))
            self._hinted[file] = stream.fileno()
        return self._hinted[file]

    def equals(self, name: str, place: Tensor) -> bool:
        """Tell whether `fill` would change nothing."""
        return all(
            torch.equal(numbers.to(part.device, part.dtype), part)
            for part, numbers in self._parts(name, place)
        )

    def _parts(self, name: str, place: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parts of a place, each with what the file holds for it."""
        entry = self._stored[name]
        if entry.dtype == FP8:
            numbers, scales = (
                self._whole(each).to(place.device) for each in (name, name + SCALE_SUFFIX)
            )
            yield place, dequantize(numbers, scales, place.dtype)
            return
        dtype = DTYPES[entry.dtype]
        stream, position = self._stream(entry.file), entry.offset
        buffer = torch.empty(min(place.numel(), PIECE_BYTES // dtype.itemsize), dtype=dtype)
        for part in place.view(-1).split(max(1, len(buffer))):
            piece = buffer[: len(part)]
            _read(stream, entry.file, position, piece)
            position += len(part) * dtype.itemsize
            yield part, piece

    def _whole(self, name: str) -> Tensor:
        entry = self._stored[name]
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        # The scale of a weight may be in another file, as at the borders of R1's.
        _read(self._stream(entry.file), entry.file, entry.offset, tensor)
        return tensor

    def _stream(self, file: Path) -> BinaryIO:
        if self._open is None or self._open[0] != file:
            self._files.close()
            self._open = file, self._files.enter_context(open_file(file, CheckpointError))
        return self._open[1]


def _read(stream: BinaryIO, file: Path, position: int, tensor: Tensor) -> None:
    """Fill a contiguous tensor on the CPU from a place in a file."""
    if not tensor.numel():
        return
    target = tensor.view(-1).view(torch.uint8).numpy()
    stream.seek(position)
    if cast(io.BufferedReader, stream).readinto(target.data) < target.size:
        raise CheckpointError(f"{file} ended while it was read: it was changed meanwhile.")
