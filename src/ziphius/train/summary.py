"""What a run says at its end: a short table, one honest sentence, and result.json for programs."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from ziphius.core.files import write_file
from ziphius.train.instruments import LOAD_STEPS, Figures
from ziphius.train.live import duration
from ziphius.train.result import TrainResult

RESULT_FILE = "result.json"
BASELINE_NAMES = {"uniform": "ln(vocabulary)", "unigram": "unigram", "bigram": "bigram"}


def summary_table(result: TrainResult, figures: Figures) -> Table:
    """Lay the end of a run out for people: loss against baselines, bits per byte, load, speed."""
    table = Table("", "", title=f"{result.stage}: {_extent(result)}", show_header=False)
    for name, value in _rows(result, figures):
        table.add_row(name, value)
    return table


def verdict(result: TrainResult) -> str:
    """Say in one sentence whether the model knows more than pairs of tokens."""
    loss, bigram = result.validation.get("loss"), result.baselines.get("bigram")
    if loss is None:
        return "Nothing was measured on held-out text: the training loss alone proves little."
    if not result.is_measured:
        return (
            f"Stopped at step {result.step:,}: held-out text was measured last at step "
            f"{result.validation_step:,}, so nothing is said of this model."
        )
    before = result.validation_at_start.get("loss")
    if before is not None and loss > before:
        return (
            f"The run ends worse than it began: the loss on held-out text was {before:.4f} and is "
            f"{loss:.4f}. A lower learning rate does less harm."
        )
    if bigram is None:
        return (
            f"The loss on held-out text is {loss:.4f}; no baseline was measured to hold it against."
        )
    if loss >= bigram:
        return (
            "This model does not beat the bigram baseline: its loss on held-out text is "
            f"{loss:.4f}, and counting pairs of tokens reaches {bigram:.4f}."
        )
    return (
        f"The loss on held-out text is {loss:.4f}, {bigram - loss:.4f} below the bigram baseline "
        f"of {bigram:.4f}."
    )


def result_document(result: TrainResult, figures: Figures) -> dict[str, Any]:
    """Return everything that the table shows, and more, JSON-serialisable."""
    return {
        "stage": result.stage,
        "folder": str(result.folder),
        "checkpoint": str(result.checkpoint),
        "is_complete": result.is_complete,
        "stopped_by": result.stopped_by,
        "step": result.step,
        "total_steps": result.total_steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_s": figures.speed.tokens_per_s,
        "mfu": figures.speed.mfu,
        "loss": _loss(result, figures),
        "validation": result.validation,
        "validation_step": result.validation_step,
        "validation_at_start": result.validation_at_start,
        "baselines": result.baselines,
        "beats_bigram": _beats_bigram(result),
        "verdict": verdict(result),
        "max_vio_by_layer": figures.max_vio_by_layer,
        "max_vio_over_steps": figures.steps_of_load,
        "spikes": result.spikes,
        "skipped_steps": result.skipped_steps,
        "exact_resume": figures.exact,
        "warnings": figures.warnings,
    }


def write_result(result: TrainResult, figures: Figures) -> Path:
    """Write result.json into the run folder and return its path."""
    path = result.folder / RESULT_FILE
    write_file(path, json.dumps(result_document(result, figures), indent=1) + "\n")
    return path


def _loss(result: TrainResult, figures: Figures) -> float | None:
    """Return the loss of the last step, also where this start of the run did none."""
    return figures.loss if result.loss is None else result.loss


def _beats_bigram(result: TrainResult) -> bool | None:
    loss, bigram = result.validation.get("loss"), result.baselines.get("bigram")
    if loss is None or bigram is None or not result.is_measured:
        return None
    return loss < bigram


def _extent(result: TrainResult) -> str:
    total = "" if result.total_steps is None else f" of {result.total_steps:,}"
    return f"{result.step:,}{total} steps, {result.tokens:,} tokens, {duration(result.seconds)}"


def _rows(result: TrainResult, figures: Figures) -> list[tuple[str, str]]:
    rows = []
    if (loss := _loss(result, figures)) is not None:
        rows.append(("loss of the last step", f"{loss:.4f}"))
    validation = result.validation
    if "loss" in validation:
        when = "" if result.is_measured else f" at step {result.validation_step:,}"
        rows.append((f"loss on held-out text{when}", f"{validation['loss']:.4f}"))
        if "loss" in result.validation_at_start:
            rows.append(("  before the first step", f"{result.validation_at_start['loss']:.4f}"))
    for name, label in BASELINE_NAMES.items():
        if name in result.baselines:
            rows.append((f"  baseline: {label}", f"{result.baselines[name]:.4f}"))
    for name, value in validation.items():
        if name.startswith("mtp") and "/" not in name:
            rows.append((f"  MTP depth {name.removeprefix('mtp')}", f"{value:.4f}"))
    for name, value in validation.items():
        kind, _, domain = name.partition("/")
        if kind == "bits_per_byte":
            rows.append((f"bits per byte{': ' * bool(domain)}{domain}", f"{value:.4f}"))
    for name in ("loss_within", "loss_beyond"):
        if name in validation:
            where = name.removeprefix("loss_")
            rows.append((f"loss {where} the old context", f"{validation[name]:.4f}"))
    if loads := figures.max_vio_by_layer:
        values = ", ".join(f"{value:.2f}" for value in loads.values())
        steps = min(figures.steps_of_load, LOAD_STEPS)
        rows.append((f"MaxVio by layer, last {steps} steps", values))
    rows.append(("tokens/s", f"{figures.speed.tokens_per_s:,.0f}"))
    if figures.speed.mfu is not None:
        rows.append(("MFU, of the measured matrix peak", f"{100 * figures.speed.mfu:.1f} %"))
    if result.spikes:
        rows.append(("jumps of the loss", f"{len(result.spikes)}"))
    if result.skipped_steps:
        rows.append(("steps with nothing to learn", f"{result.skipped_steps:,}"))
    rows.append(("model", str(result.checkpoint)))
    return rows
