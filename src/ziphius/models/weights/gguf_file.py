"""Reading GGUF files of llama.cpp: architectures llama, qwen2 and qwen3, in one file or several.

Blocks of numbers are decoded by the `gguf` package (extra `quant`); names, shapes and the order of
rows are translated here. llama.cpp keeps the query and key rows of llama models in the order of its
own rotation, pairs (0, 1), (2, 3), ..., and they are put back to Hugging Face's halves.
"""

import math
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ziphius.core.errors import CheckpointError, MissingExtraError
from ziphius.core.gguf_header import GgufHeader, GgufTensor
from ziphius.core.gguf_parts import joined, read_parts
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.weights.assembly import Assembly, check_finite
from ziphius.models.weights.gguf_config import FREQUENCY_FACTORS, gguf_config
from ziphius.models.weights.names import Slot

FORMATS = (
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

_NAMES: dict[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")

# Numbers decoded at once: 16 MiB of float32, little beside a model.
_CHUNK = 4 * 2**20


def load_gguf(file: Path, *, dtype: torch.dtype, device: torch.device, finite: bool) -> Model:
    """Check a GGUF file from end to end, then read it; see `weights.load`."""
    header, config = _read(file)
    assembly = Assembly(config)
    if assembly.count_numbers() > 2 * header.size_bytes:
        _refuse(header, f"describes {assembly.count_numbers()} parameters, too many for its size")
    slots = {gguf_name(name): slot for name, slot in assembly.slots().items()}
    _match(header, slots)
    assembly.allocate(dtype, device)
    for name, slot in slots.items():
        place = assembly.place(slot)
        place.copy_(_in_our_order(_decode(header.tensors[name]), name, config))
        if finite:
            check_finite(name, place, header.tensors[name].file)
    return assembly.finish()


def read_gguf_config(file: Path) -> ModelConfig:
    """Read what a GGUF file says about the architecture of its model."""
    return _read(file)[1]


def gguf_name(name: str) -> str:
    """Translate the name of a weight to the one llama.cpp gives it."""
    module, _, kind = name.rpartition(".")
    match = _LAYER.fullmatch(module)
    return f"blk.{match[1]}.{_NAMES[match[2]]}.{kind}" if match else f"{_NAMES[module]}.{kind}"


def _read(file: Path) -> tuple[GgufHeader, ModelConfig]:
    parts = read_parts(file)
    for part in parts:
        _check_data(part)
    header = joined(parts)
    factors = header.tensors.get(FREQUENCY_FACTORS)
    return header, gguf_config(header, None if factors is None else _decode(factors))


def _check_data(header: GgufHeader) -> None:
    """Let tensors lie one behind the other in the file, in formats that can be decoded."""
    entries = sorted(header.tensors.values(), key=lambda entry: entry.offset)
    for entry in entries:
        if entry.offset + _size_bytes(entry) > header.size_bytes:
            place = f"{entry.name} begins at {entry.offset} of {header.size_bytes} bytes"
            _refuse(header, f"is truncated: {place} and does not end in it")
    end, last = header.data_begin, "the header"
    for entry in entries:
        if not 0 <= entry.offset - end < header.alignment:
            _refuse(header, f"has a gap or an overlap between {last} and {entry.name}")
        end, last = entry.offset + _size_bytes(entry), entry.name
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


def _decode(entry: GgufTensor) -> Tensor:
    """Read a tensor as float32, in pieces, because decoding takes several times its memory."""
    gguf = _package()
    kind = gguf.GGMLQuantizationType(entry.type_number)
    row_count = math.prod(entry.shape[:-1])
    row_bytes = _size_bytes(entry) // row_count
    data = np.memmap(entry.file, np.uint8, "r", entry.offset, (row_count, row_bytes))
    values = torch.empty(data.shape[0], entry.shape[-1])
    rows = max(1, _CHUNK // entry.shape[-1])
    for first in range(0, data.shape[0], rows):
        piece = gguf.dequantize(np.array(data[first : first + rows]), kind)
        values[first : first + rows] = torch.from_numpy(piece)
    return values.view(entry.shape)


def _in_our_order(tensor: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Undo llama.cpp's order of query and key rows, [N, H/2, 2] -> [N, 2, H/2]."""
    if config.model_type != "llama" or not re.search(r"attn_[qk]\.", name):
        return tensor
    assert config.head_dim is not None
    pairs = tensor.view(-1, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _size_bytes(entry: GgufTensor) -> int:
    gguf = _package()
    try:
        kind = gguf.GGMLQuantizationType(entry.type_number)
    except ValueError:
        _refuse(entry, f"stores {entry.name} in the unknown format number {entry.type_number}")
    if kind.name not in FORMATS:
        _refuse(entry, f"stores {entry.name} as {kind.name}; known are {', '.join(FORMATS)}")
    numbers_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    if not all(entry.shape) or entry.shape[-1] % numbers_per_block:
        _refuse(entry, f"gives {entry.name} the shape {list(entry.shape)}, no whole {kind.name}")
    return math.prod(entry.shape) // int(numbers_per_block) * int(bytes_per_block)


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        message = "Reading GGUF files needs the gguf package: pip install 'ziphius[quant]'."
        raise MissingExtraError(message) from error
    return gguf


def _refuse(source: GgufHeader | GgufTensor, reason: str) -> NoReturn:
    raise CheckpointError(f"{source.file} {reason}.")
