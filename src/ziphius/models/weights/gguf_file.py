"""Reading GGUF files of llama.cpp: architectures llama, qwen2 and qwen3, in one file or several.

The headers are held against what their metadata asks for before memory is taken; then the tensors
are decoded one by one (`gguf_numbers.py`) and put back into our order (`gguf_names.py`).
"""

from pathlib import Path
from typing import NoReturn

import torch

from ziphius.core.errors import CheckpointError
from ziphius.core.gguf_header import GgufHeader
from ziphius.core.gguf_parts import joined, read_parts
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.weights.assembly import Assembly, check_finite
from ziphius.models.weights.gguf_config import FREQUENCY_FACTORS, gguf_config
from ziphius.models.weights.gguf_names import gguf_name, in_our_order
from ziphius.models.weights.gguf_numbers import decode, size_bytes
from ziphius.models.weights.names import Slot


def load_gguf(file: Path, *, dtype: torch.dtype, device: torch.device, finite: bool) -> Model:
    """Check a GGUF file from end to end, then read it; see `weights.load`."""
    header, config = _read(file)
    assembly = Assembly(config)
    if assembly.count_numbers() > 2 * header.size_bytes:
        _refuse(header, f"describes {assembly.count_numbers()} parameters, too many for its size")
    slots = {gguf_name(name): slot for name, slot in assembly.slots().items()}
    _match(header, slots)
    assembly.allocate(file, dtype, device)
    for name, slot in slots.items():
        place = assembly.place(slot)
        place.copy_(in_our_order(decode(header.tensors[name]), name, config))
        if finite:
            check_finite(name, place, header.tensors[name].file)
    return assembly.finish()


def read_gguf_config(file: Path) -> ModelConfig:
    """Read what a GGUF file says about the architecture of its model."""
    return _read(file)[1]


def _read(file: Path) -> tuple[GgufHeader, ModelConfig]:
    parts = read_parts(file)
    for part in parts:
        _check_data(part)
    header = joined(parts)
    factors = header.tensors.get(FREQUENCY_FACTORS)
    return header, gguf_config(header, None if factors is None else decode(factors))


def _check_data(header: GgufHeader) -> None:
    """Let tensors lie one behind the other in the file, in formats that can be decoded."""
    entries = sorted(header.tensors.values(), key=lambda entry: entry.offset)
    for entry in entries:
        if entry.offset + size_bytes(entry) > header.size_bytes:
            place = f"{entry.name} begins at {entry.offset} of {header.size_bytes} bytes"
            _refuse(header, f"is truncated: {place} and does not end in it")
    end, last = header.data_begin, "the header"
    for entry in entries:
        if not 0 <= entry.offset - end < header.alignment:
            _refuse(header, f"has a gap or an overlap between {last} and {entry.name}")
        end, last = entry.offset + size_bytes(entry), entry.name
    if header.size_bytes - end >= header.alignment:
        _refuse(header, f"has {header.size_bytes - end} bytes after {last}, which no tensor uses")


def _match(header: GgufHeader, slots: dict[str, Slot]) -> None:
    for name, entry in header.tensors.items():
        if name == FREQUENCY_FACTORS:
            continue
        if name not in slots:
            _refuse(header, f"holds {name}, which a model of this architecture has not")
        if entry.shape != slots[name].shape:
            found, wanted = list(entry.shape), list(slots[name].shape)
            _refuse(header, f"holds {name} of shape {found}; its metadata asks for {wanted}")
    missing = [name for name in slots if name not in header.tensors]
    if missing:
        _refuse(
            header, f"lacks {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        )


def _refuse(header: GgufHeader, reason: str) -> NoReturn:
    raise CheckpointError(f"{header.file} {reason}.")
