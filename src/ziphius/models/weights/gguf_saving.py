"""Writing a model as one GGUF file for llama.cpp, in five number formats.

Norms, biases and routers stay float32, as llama.cpp's own converter has it. With Q8_0 and Q4_0, so
does nothing else: embedding and head are Q8_0 in both, and rows that blocks of 32 do not divide are
F16. The file appears whole or not at all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.files import new_file, refuse_full_disk
from ziphius.models.int8 import has_int8
from ziphius.models.model import Model
from ziphius.models.offload import OFFLOADED, expert_cache
from ziphius.models.weights.gguf_config import FREQUENCY_FACTORS
from ziphius.models.weights.gguf_metadata import frequency_factors, gguf_metadata
from ziphius.models.weights.gguf_names import EMBEDDING, HEAD, ROUTER, gguf_tensors
from ziphius.models.weights.gguf_numbers import BLOCK, encode, package, packed_shape
from ziphius.models.weights.names import model_tensors

GgufFormat = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]

_KINDS: dict[GgufFormat, str] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
}
_IN_BLOCKS = ("Q8_0", "Q4_0")
# llama.cpp's numbers for what most of a file is: LLAMA_FTYPE_*.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}

Field = bool | int | float | str | Sequence[str] | Sequence[int]


def save_gguf(
    model: Model,
    file: Path,
    tokenizer_fields: Mapping[str, Field],
    *,
    weight_format: GgufFormat,
) -> dict[str, int]:
    """Write a model and its tokenizer to a new file; beside the model one tensor is in memory.

    Args:
        model: on any device, weights in any floating dtype.
        file: must not exist.
        tokenizer_fields: `Tokenizer.gguf_fields` for the rows of this model.
        weight_format: of the projections and experts; see above for the rest.

    Returns:
        How many tensors have which of llama.cpp's number formats.

    Raises:
        ConfigError: llama.cpp would compute something else than this model.
        CheckpointError: a weight is not finite, or too large for the format.
        OutputError: the disk has no room for the model, or the file cannot be written.
    """
    if expert_cache(model) is not None:
        raise ConfigError(OFFLOADED)
    if has_int8(model):
        raise ConfigError("The model is quantized to INT8: write the one it was made from.")
    metadata = gguf_metadata(model.config)
    gguf = package()
    tensors = dict(_tensors(model))
    kinds = {name: _kind(name, tensor, _KINDS[weight_format]) for name, tensor in tensors.items()}
    total_bytes = sum(
        math.prod(packed_shape(tuple(tensor.shape), kinds[name]))
        for name, tensor in tensors.items()
    )
    refuse_full_disk(file, total_bytes, f"the model in {weight_format}")
    with new_file(file) as unfinished:
        writer = gguf.GGUFWriter(unfinished, metadata.pop("general.architecture"))
        writer.add_file_type(_FILE_TYPES[_KINDS[weight_format]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in {**metadata, **tokenizer_fields}.items():
            _add(writer, key, value)
        _write(writer, file, tensors, kinds)
    counted = list(kinds.values())
    return {kind: counted.count(kind) for kind in dict.fromkeys(counted)}


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    factors = frequency_factors(model.config)
    if factors is not None:
        yield FREQUENCY_FACTORS, factors
    for name, tensor in model_tensors(model).items():
        yield from gguf_tensors(name, tensor, model.config)


def _kind(name: str, tensor: Tensor, wanted: str) -> str:
    if tensor.dim() == 1 or name.endswith(ROUTER):
        return "F32"
    if wanted in _IN_BLOCKS and tensor.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if wanted in _IN_BLOCKS and name in (EMBEDDING, HEAD) else wanted


def _write(writer: Any, file: Path, tensors: dict[str, Tensor], kinds: dict[str, str]) -> None:
    for name, tensor in tensors.items():
        shape = packed_shape(tuple(tensor.shape), kinds[name])
        number_format = package().GGMLQuantizationType[kinds[name]]
        writer.add_tensor_info(
            name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=number_format
        )
    with closing(writer):
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                writer.write_tensor_data(encode(tensor, kinds[name], name))
        except OSError as error:
            raise OutputError(f"Cannot write {file}: {error.strerror or error}.") from error


def _add(writer: Any, key: str, value: Field) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))
