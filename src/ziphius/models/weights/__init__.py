"""Weights in and out: Hugging Face safetensors folders (FP8 included), adapters, GGUF files.

`load`, `save` and `save_gguf` are the only ways. Nothing here runs code of a checkpoint:
safetensors, JSON and GGUF are data, `auto_map` is ignored, and other formats are refused.
"""

from pathlib import Path

import torch

from ziphius.core.errors import ConfigError
from ziphius.core.gguf_header import is_gguf_path
from ziphius.models.config import ModelConfig
from ziphius.models.lora import merge_adapters
from ziphius.models.model import Model
from ziphius.models.weights.adapters import load_adapters, split_adapters
from ziphius.models.weights.folder import folder_dtype, load_folder, read_folder_config
from ziphius.models.weights.gguf_file import load_gguf, read_gguf_config
from ziphius.models.weights.gguf_saving import GgufFormat, save_gguf
from ziphius.models.weights.saving import SavesFiles, WeightFormat, save

__all__ = [
    "GgufFormat",
    "SavesFiles",
    "WeightFormat",
    "load",
    "read_model_config",
    "save",
    "save_gguf",
    "stored_dtype",
    "tokenizer_path",
]

LOADABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    drop_mtp: bool = False,
    check_finite: bool = False,
    expert_cache: int | None = None,
) -> Model:
    """Read a model, in evaluation mode, straight into its final dtype.

    The peak of memory is the model and a few megabytes; with FP8 or GGUF, and the largest tensor
    once or twice. All checks of names, shapes, types and sizes come before any memory is taken: a
    `CheckpointError` names the file and the tensor, a `DeviceError` says what would fit.

    Args:
        path: a folder with config.json and safetensors, a .gguf file, or a folder of adapters in
            PEFT's format, which are merged into the model that they are for.
        dtype: of the weights; the router bias stays float32. None is the narrowest type that holds
            every stored weight exactly: bfloat16 for FP8 folders; float32 for GGUF, and on a CPU
            also for float16 folders, because CPUs multiply float16 14 to 250 times slower.
        device: where the weights go.
        drop_mtp: leave out the MTP layers. Without it, a folder that holds such layers and a config
            that does not is an error, as is one that lacks a part of them; one without any, as
            transformers saves V3, is loaded without, and the log warns.
        check_finite: also look through every weight for NaN and infinity.
        expert_cache: bytes of memory for routed experts; those in use are kept there, the others
            stay in the folder until they are needed (`models/offload.py`). For inference, on a CPU,
            of a folder that is not quantized to INT8. None keeps all in memory.
    """
    path = Path(path)
    if dtype is not None and dtype not in LOADABLE_DTYPES:
        known = ", ".join(str(known) for known in LOADABLE_DTYPES)
        raise ConfigError(f"dtype = {dtype}: weights can be loaded as {known}.")
    device = torch.device(device)
    path, adapters = split_adapters(path)
    if is_gguf_path(path):
        _refuse_for_gguf(path, drop_mtp=drop_mtp, expert_cache=expert_cache)
        numbers = dtype or torch.float32
        model = load_gguf(path, dtype=numbers, device=device, finite=check_finite)
    else:
        model = load_folder(
            path,
            dtype=dtype,
            device=device,
            drop_mtp=drop_mtp,
            finite=check_finite,
            expert_cache=expert_cache,
        )
    for folder in adapters:
        load_adapters(model, folder)
        merge_adapters(model)
    if expert_cache is not None:
        model.requires_grad_(False)
    return model


def _refuse_for_gguf(path: Path, *, drop_mtp: bool, expert_cache: int | None) -> None:
    if drop_mtp:
        raise ConfigError(f"drop_mtp has no effect: {path} is a GGUF file without such layers.")
    if expert_cache is not None:
        raise ConfigError(f"expert_cache is for model folders; {path} is a GGUF file.")


def read_model_config(path: Path | str) -> ModelConfig:
    """Read what a model folder or a .gguf file says about its architecture, not its weights."""
    path, _ = split_adapters(Path(path))
    return read_gguf_config(path) if is_gguf_path(path) else read_folder_config(path)


def stored_dtype(path: Path | str) -> torch.dtype:
    """Find the narrowest dtype that holds every weight of a folder or .gguf file exactly.

    It is bfloat16 for FP8, whose products with their scales are published as bfloat16, and float32
    for GGUF. Only headers are read.
    """
    path, _ = split_adapters(Path(path))
    return torch.float32 if is_gguf_path(path) else folder_dtype(path)


def tokenizer_path(path: Path | str) -> Path:
    """Find the tokenizer of a model: where the model is, or for adapters without one, their base's.

    Programs that train adapters leave it out as often as not.
    """
    path = Path(path)
    base, adapters = split_adapters(path)
    places = [folder for folder in reversed(adapters) if (folder / "tokenizer.json").is_file()]
    return next(iter(places), base)
