"""What is kept of a step that failed: its batches, and what is known of the loss before it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ziphius.core.files import new_folder, write_file
from ziphius.data.batch import Batch


def dump_step(folder: Path, batches: Sequence[Batch], report: Mapping[str, Any]) -> Path:
    """Save the micro-batches of a step that failed, and what is known of it, in a new folder.

    Args:
        folder: of the run; `failed-step-N` is made in it.
        batches: of this rank.
        report: with the keys `step` and `rank`.

    Returns:
        The new folder.
    """
    path = next(path for path in _names(folder, report) if not path.exists())
    with new_folder(path) as unfinished:
        save_file(dict(_tensors(batches)), unfinished / "batch.safetensors")
        text = json.dumps(_without_nan(report), indent=1, allow_nan=False)
        write_file(unfinished / "report.json", text + "\n")
    return path


def _names(folder: Path, report: Mapping[str, Any]) -> Iterator[Path]:
    name = f"failed-step-{report['step']}"
    if report["rank"]:
        name += f"-rank-{report['rank']}"
    yield folder / name
    for again in range(2, 1_000):
        yield folder / f"{name}-{again}"


def _tensors(batches: Sequence[Batch]) -> Iterator[tuple[str, Tensor]]:
    for micro, batch in enumerate(batches):
        yield f"micro-{micro}.ids", batch.ids_BT.cpu().contiguous()
        yield f"micro-{micro}.documents", batch.documents_BT.cpu().contiguous()
        if batch.loss_mask_BT is not None:
            yield f"micro-{micro}.loss_mask", batch.loss_mask_BT.cpu().contiguous()


def _without_nan(value: Any) -> Any:
    """Spell out numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
