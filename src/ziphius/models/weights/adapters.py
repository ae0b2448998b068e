"""Adapters of low rank on disk, in PEFT's format: what was trained, and the name of its base.

A folder with adapter_config.json is a folder of adapters, whatever else it holds, as transformers
has it. Its base may be one again.
"""

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziphius.core.errors import CheckpointError, OutputError
from ziphius.core.files import existing_path, new_folder, refuse_full_disk, write_file
from ziphius.core.reading import open_file, read_object
from ziphius.models.lora import (
    LoraLinear,
    adapt,
    adapted_layers,
    adapter_tensors,
    projections,
    refuse_adapters,
)
from ziphius.models.lora_mixed import LowRank
from ziphius.models.model import Model
from ziphius.models.weights.adapter_config import (
    CONFIG_FILE,
    MAX_FILE_BYTES,
    AdapterConfig,
    read_adapter_config,
)
from ziphius.models.weights.names import layer_of
from ziphius.models.weights.saving import SavesFiles

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SOURCE = "exported_from"
"""Key of the weight file's metadata, which other programs do not read."""
_PARTS = ("lora_A", "lora_B")


def split_adapters(path: Path) -> tuple[Path, list[Path]]:
    """Find the model that a folder of adapters is for, and all adapters on it, innermost first.

    Any other path is a model without adapters.

    Raises:
        CheckpointError: the base is not here, or leads back to the folder.
    """
    adapters: list[Path] = []
    while is_adapter_folder(path):
        if path.resolve() in {known.resolve() for known in adapters}:
            raise CheckpointError(f"{path} names itself as the base of its adapters.")
        adapters.insert(0, path)
        path = _base_of(path)
    return path, adapters


def is_adapter_folder(path: Path) -> bool:
    """Tell adapters from whole models."""
    return (path / CONFIG_FILE).is_file()


def _base_of(folder: Path) -> Path:
    file = folder / CONFIG_FILE
    name = read_object(file, MAX_FILE_BYTES, CheckpointError).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{file} names no base_model_name_or_path, the model it is for.")
    path = existing_path(name)
    if path is None and (source := _source_of(folder)) is not None:
        path = existing_path(source)
        name = f"{name} (or {source}, of which that is to be exported)"
    if path is None:
        raise CheckpointError(
            f"{folder} holds adapters for {name}, which is not here. Fetch that model, and write "
            f"its path as base_model_name_or_path into {file}."
        )
    return path


def _source_of(folder: Path) -> str | None:
    """Return the file that a base which nobody has exported yet would be exported from."""
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    found: str | None = metadata.get(_SOURCE)
    return found


def adapter_settings(model: Model, base: str) -> dict[str, Any]:
    """Describe the adapters of a model as PEFT's adapter_config.json does.

    Args:
        model: with adapters.
        base: name or path of the model without them.
    """
    layers = dict(adapted_layers(model))
    ranks = {name: layer.lora_A.out_features for name, layer in layers.items()}
    alphas = {name: layer.scaling * ranks[name] for name, layer in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # Whole names: a last part such as up_proj would also match where there is no adapter.
        "target_modules": list(layers),
    }


def save_adapters(
    model: Model,
    folder: Path,
    *,
    base: str,
    tokenizer: SavesFiles | None = None,
    exported_from: str | None = None,
) -> None:
    """Write the adapters alone to a new folder in PEFT's format.

    Args:
        model: with adapters.
        folder: must not exist or be empty.
        base: name or path of the model without them.
        tokenizer: writes its files into the same folder.
        exported_from: what we take for the base as long as it is not there, as PEFT could not.

    Raises:
        OutputError: the disk has no room for them, or the folder cannot be written.
    """
    tensors = adapter_tensors(model)
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    refuse_full_disk(folder, size, "the adapters")
    with new_folder(folder) as unfinished:
        settings = adapter_settings(model, base)
        write_adapters(unfinished, tensors, settings, tokenizer, exported_from=exported_from)


def write_adapters(
    folder: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    tokenizer: SavesFiles | None = None,
    *,
    exported_from: str | None = None,
) -> None:
    """Write adapters into a folder that is there.

    Args:
        folder: whoever made it makes it durable.
        tensors: as they are named in the model; those of no adapter are left out.
        settings: as `adapter_settings` has them.
        tokenizer: writes its files beside them.
        exported_from: see `save_adapters`.
    """
    write_file(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")
    names = [f"{name}.{part}.weight" for name in settings["target_modules"] for part in _PARTS]
    found = {_PREFIX + name: tensors[name].detach().cpu().contiguous() for name in names}
    file = folder / WEIGHTS_FILE
    metadata = {"format": "pt"} | ({} if exported_from is None else {_SOURCE: exported_from})
    try:
        save_file(found, file, metadata=metadata)
        # safetensors makes files that only their owner reads; the settings have what umask says.
        shutil.copymode(folder / CONFIG_FILE, file)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"Cannot write {file}: {error}.") from error
    if tokenizer is not None:
        tokenizer.save(folder)


def load_adapters(model: Model, folder: Path) -> None:
    """Add adapters in PEFT's format to the model they were made for, in place.

    Raises:
        CheckpointError: see `read_adapters`.
        ConfigError: the model has adapters already.
    """
    found = read_adapters(model, folder)
    refuse_adapters(model)
    model.requires_grad_(False)
    layers = dict(projections(model))
    for name, (down_rI, up_Or, scaling) in found.items():
        layer = layers[name]
        adapt(layer, len(down_rI), scaling)
        assert isinstance(layer, LoraLinear)
        layer.lora_A.weight.data.copy_(down_rI)
        layer.lora_B.weight.data.copy_(up_Or)


def read_adapters(model: Model, folder: Path) -> dict[str, LowRank]:
    """Read adapters in PEFT's format for a model, which stays as it is; float32, by projection.

    They may be PEFT's own; what of its settings is applied stands in `adapter_config.py`. MTP
    layers, which transformers lacks, stay as they are if the file has no adapter for any of them.

    Raises:
        CheckpointError: a setting is refused, or file, settings and model do not fit together.
    """
    settings = read_adapter_config(folder)
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no adapters that can be read: {error}.") from error
    layers = dict(projections(model))
    chosen = _chosen(model, settings, list(layers), tensors)
    expected = [part for name in chosen for part in _file_names(name)]
    for part in (*expected, *tensors):
        if (part in tensors) != (part in expected):
            where = "is left over" if part in tensors else "is missing"
            raise CheckpointError(f"{file}: {part} {where}.")
    adapters = {}
    for name in chosen:
        layer, rank = layers[name], settings.rank(name)
        shapes = (rank, layer.in_features), (layer.out_features, rank)
        for part, shape in zip(_file_names(name), shapes, strict=True):
            if tensors[part].shape != shape:
                raise CheckpointError(
                    f"{file}: {part} has the shape {list(tensors[part].shape)}, not {list(shape)}."
                )
        device = next(layer.parameters()).device
        down, up = (tensors[part].to(device, torch.float32) for part in _file_names(name))
        adapters[name] = LowRank(down, up, settings.scaling(name))
    return adapters


def _chosen(
    model: Model, settings: AdapterConfig, names: list[str], tensors: Mapping[str, Tensor]
) -> list[str]:
    """Choose the projections that settings and file give an adapter."""
    found = {name for name in names if any(part in tensors for part in _file_names(name))}
    chosen = settings.select(names)
    if chosen is None:
        chosen = [name for name in names if name in found]
    mtp_layers = {name for name in names if _is_mtp(model, name)}
    if found.isdisjoint(mtp_layers):
        chosen = [name for name in chosen if name not in mtp_layers]
    return chosen


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 of what decides what adapters compute: settings and weights.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with open_file(folder / name, CheckpointError) as file:
            digest.update(sha256(file.read()).digest())
    return digest.hexdigest()


def _file_names(name: str) -> tuple[str, str]:
    down, up = (f"{_PREFIX}{name}.{part}.weight" for part in _PARTS)
    return down, up


def _is_mtp(model: Model, name: str) -> bool:
    layer = layer_of(f"{name}.")
    return layer is not None and layer >= model.config.num_hidden_layers
