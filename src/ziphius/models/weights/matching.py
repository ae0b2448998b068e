"""Holding what the files store against what the config needs, before memory is taken.

None missing, none left over, every shape exact, scales for every FP8 weight and for nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from ziphius.core.errors import CheckpointError
from ziphius.models.config import ModelConfig
from ziphius.models.int8 import SCALE as INT8_SCALE
from ziphius.models.weights import names
from ziphius.models.weights.fp8 import BLOCK, scale_shape
from ziphius.models.weights.names import SCALE_SUFFIX, Slot
from ziphius.models.weights.shards import Stored

FP8, INT8 = "F8_E4M3", "I8"
SCALE_DTYPES = ("F32", "F8_E8M0")
INT8_SCALE_DTYPES = ("F32", "BF16", "F16")
TORCH_DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    FP8: torch.bfloat16,
}
"""Types of weights, and the type each is read into if none is asked for."""
_NO_WEIGHTS = (names.ROUTER_BIAS, names.SCALE_SUFFIX, names.FREQUENCIES, INT8_SCALE)


@dataclass(frozen=True)
class Plan:
    """What is to be read, after all checks: nothing in it can be missing or of a wrong shape."""

    stored: dict[str, Stored]
    slots: dict[str, Slot]
    copies: dict[str, str]
    """Tensors that must equal another one: name of the copy, name of the original."""

    def common_dtype(self, device: torch.device) -> torch.dtype:
        """Find the narrowest dtype that holds every weight exactly and is of use on a device."""
        common = narrowest_dtype({name: self.stored[name] for name in self.slots})
        # float16 products are 14 to 250 times slower than float32 ones on CPUs.
        return torch.float32 if common is torch.float16 and device.type == "cpu" else common


def narrowest_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """Find the narrowest dtype that holds every weight exactly; FP8 counts as bfloat16."""
    common: torch.dtype | None = None
    for name, entry in stored.items():
        # Neither the router bias nor scales take the dtype of the weights, nor do frequencies.
        if name.endswith(_NO_WEIGHTS) or entry.dtype not in TORCH_DTYPES:
            continue
        dtype = TORCH_DTYPES[entry.dtype]
        common = dtype if common is None else torch.promote_types(common, dtype)
    return common or torch.float32


def match(
    folder: Path, config: ModelConfig, slots: dict[str, Slot], stored: dict[str, Stored]
) -> Plan:
    """Hold the files' tensors against the model's: none missing, none left over, all in shape."""
    copies = {
        copy: original for copy, original in names.file_copies(config).items() if copy in stored
    }
    shapes = {name: slot.shape for name, slot in slots.items()}
    shapes |= {copy: slots[original].shape for copy, original in copies.items()}
    frequencies = names.file_frequencies(config)
    shapes |= {name: shape for name, shape in frequencies.items() if name in stored}
    _check_left_over(config, shapes, stored)
    _check_missing(folder, config, shapes, stored)
    for name, shape in shapes.items():
        entry = stored[name]
        if entry.shape != shape:
            found, wanted = list(entry.shape), list(shape)
            _refuse(entry.file, f"holds {name} of shape {found}; config.json asks for {wanted}")
        has_int8_scale = name + INT8_SCALE in shapes
        if has_int8_scale != (entry.dtype == INT8):
            reason = "others of its layer as INT8" if has_int8_scale else "no layer in INT8 has it"
            _refuse(entry.file, f"stores {name} as {entry.dtype}, but {reason}")
        if name.endswith(INT8_SCALE) and entry.dtype not in INT8_SCALE_DTYPES:
            known = ", ".join(INT8_SCALE_DTYPES)
            _refuse(entry.file, f"stores the scales {name} as {entry.dtype}; known are {known}")
        if entry.dtype == INT8:
            continue
        if entry.dtype == FP8:
            _check_scale(name, entry, stored)
        elif entry.dtype not in TORCH_DTYPES:
            _refuse(entry.file, f"stores the weight {name} as {entry.dtype}, a format of scales")
    return Plan(stored, slots, copies)


def _check_left_over(
    config: ModelConfig,
    shapes: dict[str, tuple[int, ...]],
    stored: dict[str, Stored],
) -> None:
    for name, entry in stored.items():
        base = name.removesuffix(SCALE_SUFFIX)
        is_scale = base != name and base in shapes and base in stored and stored[base].dtype == FP8
        if name in shapes or is_scale:
            continue
        layer = names.layer_of(name)
        if layer is not None and layer >= config.num_hidden_layers:
            mtp_layers = config.num_nextn_predict_layers
            _refuse(
                entry.file,
                f"holds {name} beyond the {config.num_hidden_layers} layers and "
                f"num_nextn_predict_layers = {mtp_layers} of config.json. If it belongs to an  "
                "MTP layer, correct that number, or load the model without "
                "such layers: drop_mtp=True (--drop-mtp)",
            )
        _refuse(entry.file, f"holds {name}, which a {config.model_type} of this config has not")


def _check_missing(
    folder: Path,
    config: ModelConfig,
    shapes: dict[str, tuple[int, ...]],
    stored: dict[str, Stored],
) -> None:
    missing = [name for name in shapes if name not in stored]
    if not missing:
        return
    files = sorted({entry.file.name for entry in stored.values()})
    where = files[0] if len(files) == 1 else f"{files[0]} .. {files[-1]}"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    reason = f"lacks {missing[0]}{more} (looked in {where})"
    layers = {names.layer_of(name) for name in missing}
    if layers <= set(names.mtp_layers(config)):
        reason += (
            f". config.json says num_nextn_predict_layers = {config.num_nextn_predict_layers}, and "
            "only a part of those layers is there. To load the model without them: "
            "drop_mtp=True (--drop-mtp)"
        )
    _refuse(folder, reason)


def _check_scale(name: str, entry: Stored, stored: dict[str, Stored]) -> None:
    if len(entry.shape) != 2:
        _refuse(entry.file, f"stores {name} {list(entry.shape)} in FP8; only matrices have blocks")
    scale_name = name + SCALE_SUFFIX
    scale = stored.get(scale_name)
    if scale is None:
        _refuse(entry.file, f"stores {name} in FP8, but its scales {scale_name} are missing")
    wanted = scale_shape(*entry.shape)
    if scale.shape != wanted:
        _refuse(
            scale.file,
            f"holds {scale_name} of shape {list(scale.shape)}; {list(entry.shape)} in blocks of "
            f"{BLOCK} has scales {list(wanted)}",
        )
    if scale.dtype not in SCALE_DTYPES:
        _refuse(scale.file, f"stores {scale_name} as {scale.dtype}; scales are F32 or F8_E8M0")


def check_size(folder: Path, numbers: int, stored: dict[str, Stored]) -> None:
    """Refuse a config far larger than its files before its tensors are even named."""
    total = sum(file.stat().st_size for file in {entry.file for entry in stored.values()})
    if numbers > total:
        _refuse(
            folder / "config.json",
            f"describes {numbers} parameters, but the weight files have only {total} bytes",
        )


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"{path} {reason}.")
