"""Reading a Hugging Face folder: config.json and safetensors, FP8 blocks and INT8 included.

Everything that can be wrong is looked for in the headers first; only then is memory taken and data
read, one tensor at a time. Weights stay as the file names them (`names.py`).
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from pydantic import ValidationError

from ziphius.core.config import explain
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.core.gguf_header import is_gguf_name
from ziphius.core.reading import list_folder
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.published import read_config
from ziphius.models.weights import int8_config, names
from ziphius.models.weights.assembly import Assembly, check_finite
from ziphius.models.weights.expert_reader import offload_experts
from ziphius.models.weights.fp8 import BLOCK
from ziphius.models.weights.matching import INT8, Plan, check_size, match, narrowest_dtype
from ziphius.models.weights.names import Slot
from ziphius.models.weights.shards import Stored, stored_tensors
from ziphius.models.weights.tensor_reader import TensorReader

_log = logging.getLogger(__name__)

# They describe the stored numbers, which a loaded model no longer has; `saving.py` writes its own.
_STORAGE_KEYS = ("quantization_config", "torch_dtype", "dtype")


def read_folder_config(folder: Path) -> ModelConfig:
    """Read config.json, without what it says about the stored numbers of the weights."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[ModelConfig, str | None]:
    """Read config.json; return with it how the weights are quantized."""
    names = list_folder(folder, CheckpointError)
    if not names:
        raise CheckpointError(f"{folder} is empty: a model folder has config.json and safetensors.")
    gguf = [name for name in names if is_gguf_name(name)]
    if gguf and "config.json" not in names:
        _refuse(
            folder, f"holds no config.json but the GGUF file {gguf[0]}: give the path of that file"
        )
    config = read_config(folder)
    quantization = config.other.get("quantization_config")
    method = None
    if quantization is not None:
        method = _quantization(folder / "config.json", quantization)
    kept = {key: value for key, value in config.other.items() if key not in _STORAGE_KEYS}
    return _changed(config, other=kept), method


def load_folder(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    drop_mtp: bool,
    finite: bool,
    expert_cache: int | None = None,
) -> Model:
    """Check a model folder from end to end, then read it; see `weights.load`."""
    config, method = _read(folder)
    stored = stored_tensors(folder, {*names.file_copies(config), *names.file_frequencies(config)})
    if drop_mtp:
        config, stored = _without_mtp(folder, config, stored)
    elif _lacks_mtp(config, stored):
        _log.warning(
            "%s: config.json says num_nextn_predict_layers = %d, but no file holds such a layer: "
            "loaded without.",
            folder,
            config.num_nextn_predict_layers,
        )
        config, stored = _without_mtp(folder, config, stored)
    assembly = Assembly(config, _int8_layers(folder, method, stored, device))
    check_size(folder, assembly.count_numbers(), stored)
    plan = match(folder, config, assembly.slots(), stored)
    numbers = dtype or plan.common_dtype(device)
    if expert_cache is not None:
        if device.type != "cpu":
            raise ConfigError(f"device = {device}: expert_cache is for models on the CPU.")
        plan = offload_experts(assembly.model, folder, plan, numbers, expert_cache, finite=finite)
    assembly.allocate(folder, numbers, device)
    with ExitStack() as files:
        _fill(assembly, plan, TensorReader(plan.stored, files), finite)
    return assembly.finish()


def folder_dtype(folder: Path) -> torch.dtype:
    """Find the narrowest dtype that holds every weight of a folder exactly, from the headers."""
    config, _ = _read(folder)
    repeated = {*names.file_copies(config), *names.file_frequencies(config)}
    return narrowest_dtype(stored_tensors(folder, repeated))


def _fill(assembly: Assembly, plan: Plan, reader: TensorReader, finite: bool) -> None:
    # In the order of the files, so that each is opened once and read from its beginning on.
    def position(item: tuple[str, Slot]) -> tuple[Path, int]:
        entry = plan.stored[item[0]]
        return entry.file, entry.offset

    for name, slot in sorted(plan.slots.items(), key=position):
        place = assembly.place(slot)
        reader.fill(name, place)
        if finite:
            check_finite(name, place, plan.stored[name].file)
    for copy, original in plan.copies.items():
        if not reader.equals(copy, assembly.place(plan.slots[original])):
            file = plan.stored[copy].file
            _refuse(file, f"holds {copy}, which should equal {original} and differs")


def _int8_layers(
    folder: Path, method: str | None, stored: dict[str, Stored], device: torch.device
) -> set[str]:
    """Name the layers that are stored in INT8; none of them without config.json saying so."""
    weights = [name for name, entry in stored.items() if entry.dtype == INT8]
    if weights and method != int8_config.METHOD:
        file = stored[weights[0]].file
        _refuse(file, f"stores {weights[0]} as INT8, of which config.json says nothing")
    if not weights and method == int8_config.METHOD:
        _refuse(folder / "config.json", "says the weights are INT8, but none of them is")
    if weights and device.type != "cpu":
        raise ConfigError(f"device = {device}: {folder} holds INT8 weights, which run on a CPU.")
    return set(map(names.int8_layer_of, weights))


def _quantization(file: Path, quantization: object) -> str:
    """Name the quantization, if this code reads it; how each tensor is stored the files say."""
    match quantization:
        case {"quant_method": int8_config.METHOD, **rest}:
            if (reason := int8_config.what_differs(rest)) is not None:
                _refuse(file, reason)
            return int8_config.METHOD
        case {"quant_method": "fp8", **rest}:
            block = rest.get("weight_block_size", [BLOCK, BLOCK])
            number_format = rest.get("fmt", "e4m3")
            if block != [BLOCK, BLOCK] or number_format != "e4m3":
                _refuse(
                    file,
                    f"describes FP8 weights as {number_format!r} in blocks {block!r}; "
                    f"only e4m3 in [{BLOCK}, {BLOCK}] is known",
                )
            return "fp8"
        case {"quant_method": str(method)}:
            _refuse(
                file,
                f"says the weights are quantized with {method!r}; only fp8 and "
                f"{int8_config.METHOD} are known",
            )
        case _:
            _refuse(file, "has a quantization_config without a quant_method")


def _lacks_mtp(config: ModelConfig, stored: dict[str, Stored]) -> bool:
    """Tell whether the files leave out all MTP layers.

    transformers writes such folders: it knows these layers in the config alone.
    """
    mtp_layers = set(names.mtp_layers(config))
    return bool(mtp_layers) and mtp_layers.isdisjoint(map(names.layer_of, stored))


def _without_mtp(
    folder: Path, config: ModelConfig, stored: dict[str, Stored]
) -> tuple[ModelConfig, dict[str, Stored]]:
    """Take the MTP layers out of the config and of the list of tensors."""
    first = config.num_hidden_layers
    last = first + (config.num_nextn_predict_layers or 1)
    kept = {
        name: entry
        for name, entry in stored.items()
        if (layer := names.layer_of(name)) is None or not first <= layer < last
    }
    if not config.num_nextn_predict_layers and len(kept) == len(stored):
        raise ConfigError(f"drop_mtp has no effect: {folder} has no MTP layers.")
    try:
        return _changed(config, num_nextn_predict_layers=0), kept
    except ValidationError as error:
        _refuse(folder, f"cannot be loaded with drop_mtp: {explain(error)}")


def _changed(config: ModelConfig, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate(config.model_dump() | changes)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"{path} {reason}.")
