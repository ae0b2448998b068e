"""Curves for TensorBoard and, where asked for, Weights & Biases: scalars by name and step.

Both take the same names, `scalars_of` a record; a slash groups charts.
"""

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from ziphius.core.errors import MissingExtraError
from ziphius.train.records import Speed, max_vio
from ziphius.train.seams import StepRecord, ValidationRecord

EVENTS = "tensorboard"


class Curves(Protocol):
    """Takes scalars and keeps them somewhere."""

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        ...

    def cut_after(self, step: int) -> None:
        """Forget what is beyond a step, as far as the place can."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class TensorBoardCurves:
    """Events in `tensorboard/` of a run folder."""

    def __init__(self, folder: Path) -> None:
        if not has_tensorboard():
            raise MissingExtraError(
                "TensorBoard is not installed. Get it with: pip install tensorboard; or switch its "
                "curves off."
            )
        self._folder = folder / EVENTS
        self._writer: Any = None
        self._first_step = 0

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        if self._writer is None:
            # Opened late: a start that is refused must leave no file in the folder of a run.
            self._writer = _writer(self._folder, self._first_step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def cut_after(self, step: int) -> None:
        """Go on in a file that makes readers forget the steps after this one."""
        self.close()
        self._first_step = step + 1

    def close(self) -> None:
        """Write out what is still held."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbCurves:
    """Curves of the service wandb.ai, or of its offline folder in the run folder.

    Args:
        folder: of the run; its path is the run's identity, so that a resumed run goes on.
        project: of the user's account.
        is_offline: write to the folder only, to be sent later with `wandb sync`.
        config: what the run was started with.
    """

    def __init__(
        self, folder: Path, project: str, *, is_offline: bool, config: dict[str, Any]
    ) -> None:
        self._run = import_wandb().init(
            project=project,
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            mode="offline" if is_offline else "online",
            config=config,
        )

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._run.log(scalars, step=step)

    def cut_after(self, step: int) -> None:
        """Leave what was sent: the service takes no step back, and ignores repeated ones."""

    def close(self) -> None:
        """Send what is still held."""
        self._run.finish()


def import_wandb() -> Any:
    """Return the package of Weights & Biases.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise MissingExtraError(
            "Weights & Biases is not installed. Get it with: pip install wandb; or leave wandb out."
        ) from error


def has_tensorboard() -> bool:
    """Tell whether TensorBoard is installed, without importing it."""
    return importlib.util.find_spec("tensorboard") is not None


def scalars_of(record: StepRecord, speed: Speed) -> dict[str, float]:
    """Name the scalars of a step."""
    scalars = {"loss": record.loss, "learning_rate": record.learning_rate}
    scalars |= {f"terms/{name}": value for name, value in record.terms.items()}
    scalars |= {"grad_norm/all": record.grad_norm}
    scalars |= {f"grad_norm/{part}": norm for part, norm in record.grad_norm_by_part.items()}
    for layer, counts in record.counts_by_layer.items():
        scalars[f"max_vio/layer {layer}"] = max_vio(counts)
        busiest, mean = max(counts), max(1.0, sum(counts) / len(counts))
        scalars[f"load of the busiest expert/layer {layer}"] = busiest / mean
        scalars[f"load of the idlest expert/layer {layer}"] = min(counts) / mean
    for layer, entropy in record.gate_entropy_by_layer.items():
        scalars[f"gate_entropy/layer {layer}"] = entropy
    scalars["speed/tokens_per_s"] = speed.tokens_per_s
    if speed.mfu is not None:
        scalars["speed/mfu"] = speed.mfu
    return scalars


def validation_scalars(record: ValidationRecord) -> dict[str, float]:
    """Name the scalars of a measurement."""
    return {f"validation/{name}": value for name, value in record.figures.items()}


def _writer(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)
