"""The instruments of a run: live line, metrics.jsonl, curves, and what the summary is made of.

Loss stands beside its baselines, speed beside the measured peak of this machine. FLOPs are those of
`models/cost.py`, forward and backward of all weights.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ziphius.models.config import ModelConfig
from ziphius.models.cost import model_cost
from ziphius.train.instruments_config import InstrumentsConfig
from ziphius.train.live import LiveLine, step_text
from ziphius.train.peak import matrix_peak
from ziphius.train.records import MetricsFile, Speed, max_vio, step_line, validation_line
from ziphius.train.seams import StepRecord, ValidationRecord
from ziphius.train.tensorboard import (
    Curves,
    TensorBoardCurves,
    WandbCurves,
    has_tensorboard,
    scalars_of,
    validation_scalars,
)

SPEED_STEPS = 20
"""Steps that the shown speed is taken over."""
LOAD_STEPS = 100
"""Steps whose expert loads are added up for the summary."""


@dataclass(frozen=True)
class Effort:
    """What a token of training costs, and what the machine can do."""

    flops_per_token: int
    peak_flops_per_s: float
    """Of all processes together."""

    def mfu(self, tokens_per_s: float) -> float:
        """Return the model FLOPs utilization of a speed: its share of the measured peak."""
        return tokens_per_s * self.flops_per_token / self.peak_flops_per_s


def measured_effort(
    config: ModelConfig,
    *,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: int = 1,
) -> Effort:
    """Work out the cost of a token and measure the peak of this machine, if that was not done."""
    flops = model_cost(config, context=seq_len).flops
    # Each process has an accelerator, or threads, of its own: torchrun shares the cores out.
    peak = processes * matrix_peak(device, dtype)
    return Effort(flops.training + flops.training_mtp, peak)


@dataclass
class Figures:
    """What the instruments saw, for the summary at the end."""

    speed: Speed
    max_vio_by_layer: dict[int, float] = field(default_factory=dict)
    """Of the load of the last `LOAD_STEPS` steps together."""
    steps_of_load: int = 0
    loss: float | None = None
    """Of the last step, of this start of the run or an earlier one."""
    exact: str | None = None
    """How the run went on, if it was resumed."""
    warnings: list[str] = field(default_factory=list)


class Instruments:
    """The recorder of a run; see `train.seams.Recorder`.

    Args:
        folder: of the run.
        config: what to show and keep.
        baselines: losses to show beside that of the run.
        effort: for the MFU; None shows none.
        console: for people; standard error by default, because results go to standard output.
        run_config: what the run was started with, for Weights & Biases.
    """

    def __init__(
        self,
        folder: Path,
        config: InstrumentsConfig,
        *,
        baselines: Mapping[str, float] | None = None,
        effort: Effort | None = None,
        console: Console | None = None,
        run_config: dict[str, Any] | None = None,
    ) -> None:
        self.baselines, self.effort = baselines or {}, effort
        self.line = LiveLine(console or Console(stderr=True), is_quiet=config.quiet)
        self.metrics = MetricsFile(folder)
        self.curves = self._open_curves(folder, config, run_config or {})
        self._speeds: deque[tuple[int, float]] = deque(maxlen=SPEED_STEPS)
        self._loads: deque[dict[int, list[int]]] = deque(maxlen=LOAD_STEPS)
        self._has_begun = False
        self._loss: float | None = None
        self._exact: str | None = None
        self._warnings: list[str] = []

    def resumed(self, step: int, exact: str) -> None:
        """Forget what was recorded after `step`, and say how the run goes on."""
        self._exact = exact
        self._begin(after=step)
        self._remember()
        self.line.message(f"Going on from step {step}. exact: {exact}")

    def step(self, record: StepRecord) -> None:
        """Write a step down and show it."""
        self._begin()
        self._loss = record.loss
        self._speeds.append((record.tokens, record.seconds))
        if record.counts_by_layer:
            self._loads.append(record.counts_by_layer)
        speed = self.speed
        self.metrics.write(step_line(record, speed))
        for curves in self.curves:
            curves.write(scalars_of(record, speed), record.step)
        self.line.show(
            step_text(
                step=record.step,
                progress=record.progress,
                loss=record.loss,
                baselines=self.baselines,
                eta_s=record.eta_s,
                speed=speed,
            )
        )

    def validation(self, record: ValidationRecord) -> None:
        """Write a measurement down and show its loss."""
        self._begin()
        self.metrics.write(validation_line(record))
        for curves in self.curves:
            curves.write(validation_scalars(record), record.step)
        if not self.line.is_quiet:
            self.line.message(_validation_text(record))

    def note(self, message: str) -> None:
        """Show something the user should know."""
        self.line.message(message)

    def warn(self, message: str) -> None:
        """Show a warning and keep it for the summary."""
        self._warnings.append(message)
        self.line.message(message)

    def close(self) -> None:
        """Write out what is still held."""
        self.line.close()
        for curves in self.curves:
            curves.close()

    @property
    def speed(self) -> Speed:
        """Return the speed of the last steps."""
        seconds = sum(seconds for _, seconds in self._speeds)
        tokens_per_s = sum(tokens for tokens, _ in self._speeds) / seconds if seconds else 0.0
        mfu = None if self.effort is None else self.effort.mfu(tokens_per_s)
        return Speed(tokens_per_s, mfu)

    @property
    def figures(self) -> Figures:
        """Return what the summary is made of."""
        layers = self._loads[-1] if self._loads else {}
        return Figures(
            speed=self.speed,
            max_vio_by_layer={
                layer: max_vio([sum(column) for column in zip(*self._counts(layer), strict=True)])
                for layer in layers
            },
            steps_of_load=len(self._loads),
            loss=self._loss,
            exact=self._exact,
            warnings=list(self._warnings),
        )

    def _begin(self, after: int = -1) -> None:
        """Forget what an earlier start wrote beyond the step that this one goes on from."""
        if self._has_begun:
            return
        self._has_begun = True
        self.metrics.cut_after(after)
        for curves in self.curves:
            curves.cut_after(after)

    def _remember(self) -> None:
        """Take up what earlier starts wrote, so that a summary is of the run and not of a start."""
        for entry in self.metrics.entries():
            if entry["kind"] == "step":
                self._loss = entry["loss"]
                self._speeds.append((entry["tokens"], entry["seconds"]))
                if loads := entry["expert_counts"]:
                    self._loads.append({int(layer): counts for layer, counts in loads.items()})

    def _counts(self, layer: int) -> list[list[int]]:
        return [counts[layer] for counts in self._loads]

    def _open_curves(
        self, folder: Path, config: InstrumentsConfig, run_config: dict[str, Any]
    ) -> list[Curves]:
        curves: list[Curves] = []
        if config.tensorboard and has_tensorboard():
            curves.append(TensorBoardCurves(folder))
        elif config.tensorboard:
            self.line.message("No curves for TensorBoard: get it with pip install tensorboard.")
        if config.wandb is not None:
            curves.append(
                WandbCurves(
                    folder, config.wandb, is_offline=config.wandb_offline, config=run_config
                )
            )
        return curves


def _validation_text(record: ValidationRecord) -> str:
    """Write the loss and the bits per byte of all held-out text."""
    shown = {"loss": "loss", "bits_per_byte": "bits per byte"}
    figures = ", ".join(
        f"{label} {record.figures[name]:.4f}"
        for name, label in shown.items()
        if name in record.figures
    )
    return f"step {record.step:,}  held out: {figures}"
