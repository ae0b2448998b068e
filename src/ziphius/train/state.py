"""The state of a run on disk.

A checkpoint is a model folder that any program of the Hugging Face family loads (float32, so that
no bit is lost, the router biases with the weights), or PEFT's folder of adapters where adapters are
trained; and beside it `training/`: state.json, and one safetensors file for each part of the
inventory that has tensors.

A state is copied while the run stands still between two steps; writing needs the copy only and can
run behind the training.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziphius.core.errors import OutputError
from ziphius.core.files import write_file
from ziphius.models import weights
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.weights.adapters import adapter_settings, is_adapter_folder, write_adapters
from ziphius.models.weights.names import model_tensors
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.seams import TrainState
from ziphius.train.state_items import STATE_ITEMS, SavedItem, empty_model, has_adapters, owner_of

FORMAT = 1
FOLDER, STATE_FILE = "training", "state.json"
SHARD_BYTES = 128_000_000
"""Of a weight file; beside the copy of the state one file's tensors are in memory."""


@dataclass(frozen=True)
class Snapshot:
    """A state as it was between two steps, and nothing of it shared with the run."""

    step: int
    validation_loss: float | None
    config: ModelConfig
    tensors: dict[str, dict[str, Tensor]]
    """By item."""
    document: str
    """state.json."""
    adapter_settings: dict[str, Any] | None = None
    """PEFT's, of a model with adapters."""


@dataclass(frozen=True)
class Stored:
    """A state as it was read from a checkpoint."""

    items: dict[str, SavedItem]
    notes: dict[str, Any]


@torch.no_grad()
def capture(state: TrainState, notes: Mapping[str, Any], base: Path | None = None) -> Snapshot:
    """Copy a state; this is the only part of a save that the training waits for.

    Args:
        state: between two steps.
        notes: JSON-serialisable, kept beside it.
        base: the model that adapters are for, if it has a place.
    """
    saved = {name: item.capture(state) for name, item in STATE_ITEMS.items()}
    values = {name: one.values for name, one in saved.items()}
    model = state.model
    # Whole: it is read by whoever takes the adapters, from wherever they stand.
    origin = "" if base is None else str(base.absolute())
    return Snapshot(
        step=state.step,
        validation_loss=state.validation.get("loss"),
        config=state.model.config,
        tensors={name: one.tensors for name, one in saved.items() if one.tensors},
        document=json.dumps({"format": FORMAT, "notes": notes, "parts": values}, indent=1),
        adapter_settings=adapter_settings(model, origin) if has_adapters(model) else None,
    )


def write(snapshot: Snapshot, folder: Path, tokenizer: weights.SavesFiles | None = None) -> None:
    """Write a snapshot into an empty folder; whoever makes the folder makes it durable.

    Args:
        snapshot: what to write.
        folder: a model folder, or one of adapters, afterwards.
        tokenizer: writes its files beside the model.
    """
    if snapshot.adapter_settings is not None:
        settings = snapshot.adapter_settings
        write_adapters(folder, snapshot.tensors["adapters"], settings, tokenizer)
    else:
        model = _as_model(snapshot.config, snapshot.tensors["model"])
        weights.save(model, folder, tokenizer, weight_format="float32", max_shard_bytes=SHARD_BYTES)
    training = folder / FOLDER
    training.mkdir()
    write_file(training / STATE_FILE, snapshot.document + "\n")
    for name, tensors in snapshot.tensors.items():
        if name != "model":
            _write_tensors(training / f"{name}.safetensors", tensors)


def checkpoint_bytes(model: Model, config: TrainConfig) -> int:
    """Estimate the size of a checkpoint: what moves and its moments, and a model that is trained.

    Both moments of AdamW are counted, of which another optimizer may keep one, and the weights as
    float32, as they are written.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    written = trained
    if not has_adapters(model):
        written = sum(tensor.numel() for tensor in model_tensors(model).values())
    return 4 * (written + 2 * trained + (trained if config.ema_decay else 0))


def read(folder: Path) -> Stored:
    """Read a checkpoint that `write` made; its files were checked against their manifest."""
    training = folder / FOLDER
    document = json.loads((training / STATE_FILE).read_bytes())
    if document["format"] != FORMAT:
        raise TrainingError(
            f"{training / STATE_FILE} has the format {document['format']}; this version reads "
            f"{FORMAT}."
        )
    items = {name: SavedItem(values=values) for name, values in document["parts"].items()}
    for name, saved in items.items():
        file = training / f"{name}.safetensors"
        if name == "model":
            if not is_adapter_folder(folder):
                saved.tensors = model_tensors(weights.load(folder, dtype=torch.float32))
        elif file.exists():
            saved.tensors = load_file(file)
    return Stored(items, document["notes"])


def read_progress(folder: Path) -> dict[str, Any]:
    """Read how far the run of a checkpoint was: `step`, `seconds`, `plan` and others."""
    document = json.loads((folder / FOLDER / STATE_FILE).read_bytes())
    progress: dict[str, Any] = document["parts"]["progress"]
    return progress


def restore(state: TrainState, stored: Stored) -> None:
    """Make a state of the same shape equal to the one that was written."""
    if (different := sorted(STATE_ITEMS.keys() ^ stored.items.keys())) != []:
        raise TrainingError(
            f"The checkpoint was written by another version: {', '.join(different)} is in one and "
            "not in the other."
        )
    for name, item in STATE_ITEMS.items():
        item.restore(state, stored.items[name])


def _as_model(config: ModelConfig, tensors: dict[str, Tensor]) -> Model:
    """Build a model around tensors; they are not copied."""
    model = empty_model(config)
    for name, tensor in tensors.items():
        owner, attribute = owner_of(model, name)
        is_parameter = attribute in owner._parameters
        setattr(owner, attribute, torch.nn.Parameter(tensor, False) if is_parameter else tensor)
    model.tie_weights()
    return model


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, file)
        # safetensors makes files that only their owner reads; state.json has what the umask says.
        shutil.copymode(file.with_name(STATE_FILE), file)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"Cannot write {file}: {error}.") from error
