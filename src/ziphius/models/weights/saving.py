"""Writing a model as a Hugging Face folder that transformers and this package load.

Layout: config.json, and model.safetensors or, above `max_shard_bytes`, numbered files and an index.
Experts are written one by one, MTP layers with their copies of embedding and head, the router bias
in float32. The folder appears whole or not at all.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.core.files import new_folder, refuse_full_disk, write_file
from ziphius.models.int8 import has_int8
from ziphius.models.model import Model
from ziphius.models.offload import OFFLOADED, expert_cache
from ziphius.models.published import OWN_TYPE, refused_elsewhere, to_published
from ziphius.models.weights.fp8 import (
    BLOCK,
    ScaleFormat,
    is_misread,
    is_refused,
    quantize,
    scale_shape,
)
from ziphius.models.weights.int8_config import quantization_config
from ziphius.models.weights.names import (
    HEAD,
    SCALE_SUFFIX,
    file_copies,
    file_slots,
    is_projection,
    model_tensors,
)
from ziphius.models.weights.shards import INDEX_FILE, WEIGHTS_FILE

_log = logging.getLogger(__name__)

WeightFormat = Literal["bfloat16", "float32", "fp8", "fp8-ue8m0"]

SCALE_FORMATS: dict[str, ScaleFormat] = {"fp8": "float", "fp8-ue8m0": "ue8m0"}
"""Weight formats that quantize the projections, and how they round scales."""


class SavesFiles(Protocol):
    """Anything that belongs into a model folder and can write itself there: a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation, for config.json to say the same."""

    def save(self, folder: Path) -> None:
        """Write files into an existing folder."""


@dataclass(frozen=True)
class Piece:
    """What one weight becomes on disk: itself, or its FP8 numbers and scales together."""

    size_bytes: int
    make: Callable[[], dict[str, Tensor]]


def save(
    model: Model,
    folder: Path,
    tokenizer: SavesFiles | None = None,
    *,
    weight_format: WeightFormat | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model to a new folder; no weight is rounded unless `weight_format` asks for it.

    Beside the model only one file's tensors are in memory.

    Args:
        model: on any device, weights in any floating dtype.
        folder: must not exist or be empty.
        tokenizer: writes its files into the same folder.
        weight_format: None is bfloat16 for a model whose weights all are, else float32. `fp8` and
            `fp8-ue8m0` quantize the projections of attention and feed-forward layers in blocks as
            V3 and V3.1 are published; everything else is bfloat16 then. INT8 layers of a quantized
            model stay INT8, and this says what the rest becomes.
        max_shard_bytes: largest size of a weight file; a larger weight has a file of its own.

    Raises:
        OutputError: the disk has no room for the model, or the folder cannot be written.
    """
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes = {max_shard_bytes}: must be 1 or more.")
    if expert_cache(model) is not None:
        raise ConfigError(OFFLOADED)
    if weight_format in SCALE_FORMATS and has_int8(model):
        raise ConfigError(
            f"weight_format = {weight_format!r}: the model is quantized to INT8; save the rest of "
            "it as bfloat16 or float32."
        )
    if weight_format is None:
        dtypes = {parameter.dtype for parameter in model.parameters()}
        weight_format = "bfloat16" if dtypes == {torch.bfloat16} else "float32"
    shards = _shards(list(_pieces(model, weight_format)), max_shard_bytes)
    total_bytes = sum(piece.size_bytes for pieces in shards for piece in pieces)
    refuse_full_disk(folder, total_bytes, f"the model in {weight_format}")
    with new_folder(folder) as temporary:
        config = _published_config(model, weight_format)
        _warn_of_others(model, config, folder, weight_format)
        # An id that has no row is none that the model can write, and no reader takes it.
        rows = model.config.vocab_size
        if ends := [end for end in (tokenizer.eos_ids if tokenizer else ()) if end < rows]:
            config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        write_file(temporary / "config.json", _as_json(config))
        weight_map: dict[str, str] = {}
        for index, pieces in enumerate(shards, 1):
            file = temporary / _file_name(index, len(shards))
            weight_map |= dict.fromkeys(_write_shard(pieces, file), file.name)
        if len(shards) > 1:
            index_data = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            write_file(temporary / INDEX_FILE, _as_json(index_data))
        if tokenizer is not None:
            tokenizer.save(temporary)


def _pieces(model: Model, weight_format: WeightFormat) -> Iterator[Piece]:
    """Yield all weights in the order of the layers, copies included."""
    tensors = model_tensors(model)
    slots = file_slots(model)
    # A tied head is not written: its copy is one of the embedding, which readers tie themselves.
    # Nor are copies of a head in INT8, which has scales too: a reader can do without.
    copies = {
        copy: name
        for copy, name in file_copies(model.config).items()
        if copy != HEAD and tensors[slots[name].name].is_floating_point()
    }
    for name, slot in {**slots, **{copy: slots[name] for copy, name in copies.items()}}.items():
        source = tensors[slot.name]
        part = slot.of(source)
        if weight_format in SCALE_FORMATS and is_projection(name):
            yield _fp8_piece(name, part, SCALE_FORMATS[weight_format])
        else:
            is_bias = not isinstance(source, nn.Parameter)
            wide = is_bias or weight_format == "float32"
            dtype = torch.float32 if wide else torch.bfloat16
            yield _plain_piece(name, part, dtype if part.is_floating_point() else part.dtype)


def _plain_piece(name: str, tensor: Tensor, dtype: torch.dtype) -> Piece:
    # A copy, because safetensors refuses two names for one memory.
    def make() -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", dtype, copy=True).contiguous()}

    return Piece(tensor.numel() * dtype.itemsize, make)


def _fp8_piece(name: str, tensor: Tensor, scale_format: ScaleFormat) -> Piece:
    rows, columns = tensor.shape
    down, across = scale_shape(rows, columns)

    def make() -> dict[str, Tensor]:
        numbers, scales = quantize(tensor.detach(), scale_format)
        if not scales.isfinite().all():
            raise CheckpointError(f"{name} holds NaN or infinity, which FP8 blocks cannot store.")
        return {name: numbers.cpu(), name + SCALE_SUFFIX: scales.cpu()}

    return Piece(rows * columns + 4 * down * across, make)


def _shards(pieces: list[Piece], max_shard_bytes: int) -> list[list[Piece]]:
    """Distribute weights over files in their order, each file as full as the limit allows."""
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.size_bytes
    return shards


def _published_config(model: Model, weight_format: WeightFormat) -> dict[str, Any]:
    data = to_published(model.config)
    data["torch_dtype"] = "float32" if weight_format == "float32" else "bfloat16"
    if weight_format in SCALE_FORMATS:
        data["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        }
        if weight_format == "fp8-ue8m0":
            data["quantization_config"]["scale_fmt"] = "ue8m0"
        if any(is_misread(*shape) for shape in _projections(model)):
            data = refused_elsewhere(data)
    if has_int8(model):
        data["quantization_config"] = quantization_config(model)
    return data


def _projections(model: Model) -> list[tuple[int, int]]:
    """List the shapes that the files quantize."""
    slots = file_slots(model).items()
    return [(slot.shape[0], slot.shape[1]) for name, slot in slots if is_projection(name)]


def _warn_of_others(
    model: Model, written: dict[str, Any], folder: Path, weight_format: WeightFormat
) -> None:
    """Say where other programs cannot do with the folder what this package does."""
    config = model.config
    if written["model_type"] == OWN_TYPE:
        _log.warning(
            "%s: other programs would compute something else than this model, so config.json names "
            "it %s, which they refuse. Load it with this package.",
            folder,
            OWN_TYPE,
        )
    elif weight_format in SCALE_FORMATS and any(is_refused(*s) for s in _projections(model)):
        _log.warning(
            "%s: transformers 5.23 loads FP8 whose shapes are no whole blocks of %d only where its "
            "FP8 kernels run; for all else write bfloat16.",
            folder,
            BLOCK,
        )
    elif config.model_type == "deepseek_v2" and config.norm_topk_prob:
        _log.warning("%s: transformers 5.23 ignores norm_topk_prob of deepseek_v2.", folder)
    elif config.n_routed_experts and config.moe_layer_freq != 1:
        _log.warning("%s: transformers 5.23 ignores moe_layer_freq.", folder)


def _file_name(index: int, count: int) -> str:
    return WEIGHTS_FILE if count == 1 else f"model-{index:05}-of-{count:05}.safetensors"


def _write_shard(pieces: list[Piece], file: Path) -> list[str]:
    """Make and write the tensors of one file; return their names, the tensors are let go."""
    tensors = {name: tensor for piece in pieces for name, tensor in piece.make().items()}
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        # safetensors makes files that only their owner reads; config.json has what the umask says.
        shutil.copymode(file.with_name("config.json"), file)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"Cannot write {file}: {error}.") from error
    return list(tensors)


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
