"""A run around the loop, the same for every stage: adapters, folder, instruments, checkpoints."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ziphius.core.device import multiplies_bfloat16, resolve_dtype
from ziphius.core.errors import ConfigError
from ziphius.core.files import refuse_full_disk
from ziphius.core.gguf_header import is_gguf_path
from ziphius.data.loader import Loader
from ziphius.data.prefetch import Prefetcher
from ziphius.dist.world import ALONE, World, first_before_others
from ziphius.models.lora import add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights.adapters import save_adapters
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.checkpoint import CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.instruments import Figures, Instruments, measured_effort
from ziphius.train.loop import train
from ziphius.train.records import METRICS_FILE
from ziphius.train.result import TrainResult
from ziphius.train.settings import RunSettings
from ziphius.train.stage import Stage
from ziphius.train.state import checkpoint_bytes
from ziphius.train.tensorboard import import_wandb

ADAPTER_FOLDER = "adapter"
BASE_FOLDER = "base"
"""Where adapters of a GGUF file look for their base: PEFT loads folders alone."""


def _nothing() -> None:
    """Claim no folder."""


@dataclass(frozen=True)
class RunContext:
    """How a run is called, beside its settings."""

    world: World = ALONE
    """The ranks that do it together; each calls the run."""
    require_exact: bool = False
    """Refuse to resume with other numbers than those of an uninterrupted run."""
    console: Console | None = None
    """For people."""
    claim: Callable[[], None] = _nothing
    """Called on the first rank once all settings have proven to work, before anything is written
    to the folder of the run."""


PLAIN = RunContext()
"""One process that writes to standard error."""


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its instruments saw."""

    result: TrainResult
    figures: Figures | None
    """None on all ranks but the first."""
    text: str = ""
    """What was learned from, in a line."""
    table: Table | None = None
    """What each domain gave, of a run on a mix."""
    adapter: Path | None = None
    """Folder of the adapters, of a run with LoRA that is complete."""
    unexported: tuple[Path, Path] | None = None
    """The GGUF file they were trained on, and the folder that they name as their base instead."""


def add_adapters_if_asked(model: Model, lora: LoraConfig, config: TrainConfig) -> TrainConfig:
    """Give a model its adapters, in place, and return how it is trained with them.

    Adapters would not carry router biases that moved, so those stand still.
    """
    if not lora.rank:
        return config
    add_adapters(model, lora, seed=config.seed)
    return config.model_copy(update={"bias_rate": 0.0})


def refuse_longer_rows(model: Model, config: TrainConfig, hint: str = "") -> None:
    """Raise a ConfigError if the rows of a run are longer than the model's context."""
    longest = model.config.max_position_embeddings
    if config.seq_len > longest:
        raise ConfigError(
            f"seq_len = {config.seq_len}: the model is made for {longest} tokens; give at most "
            f"{longest}{hint}."
        )


def refuse_mtp_without_layers(model: Model, config: TrainConfig) -> None:
    """Raise a ConfigError if a weight of the MTP loss was chosen for a model that has none."""
    is_chosen = config.mtp != type(config).model_fields["mtp"].default
    if is_chosen and not model.config.num_nextn_predict_layers:
        raise ConfigError(
            f"mtp = {config.mtp}: the model has no MTP layers; leave it "
            "out, or take a model with such layers."
        )


def run_stage(
    settings: RunSettings,
    folder: Path,
    context: RunContext,
    *,
    config: TrainConfig,
    model: Model,
    tokenizer: Tokenizer,
    loader: Loader,
    build: Callable[[Loader], Stage],
    base: Path | None = None,
    text: str = "",
) -> Finished:
    """Train a prepared model on a prepared loader, or go on where the folder has a checkpoint.

    Args:
        settings: of the run.
        folder: of the run; untouched until everything else is known to work.
        context: how the run was called.
        config: how to train; `settings.train` with all that follows from data and adapters.
        model: on its device, with adapters where settings ask for them.
        tokenizer: goes into every checkpoint.
        loader: the rows; read ahead by threads.
        build: makes the stage on a loader.
        base: what the adapters were added to.
        text: what is learned from, in a line; shown at the start.
    """
    with Prefetcher(loader, workers=config.workers) as prefetcher:
        return run_built_stage(
            settings,
            folder,
            context,
            config=config,
            model=model,
            tokenizer=tokenizer,
            stage=build(prefetcher),
            base=base,
            text=text,
        )


def run_built_stage(
    settings: RunSettings,
    folder: Path,
    context: RunContext,
    *,
    config: TrainConfig,
    model: Model,
    tokenizer: Tokenizer,
    stage: Stage,
    base: Path | None = None,
    text: str = "",
) -> Finished:
    """Do what `run_stage` does with a stage that has its batches from elsewhere."""
    world = context.world
    device = next(model.parameters()).device
    if settings.instruments.wandb is not None:
        import_wandb()
    store = CheckpointStore(
        folder,
        config,
        tokenizer=tokenizer,
        base=base,
        world=world,
        require_exact=context.require_exact,
    )
    found, was_begun = store.latest(tells=False), (folder / METRICS_FILE).exists()
    if found is not None:
        store.refuse_spent(found)
    if world.is_first:
        refuse_full_disk(folder, checkpoint_bytes(model, config), "its first checkpoint")
    first_before_others(world, device, context.claim if world.is_first else _nothing)
    recorder = None
    if world.is_first:
        recorder = _instruments(settings, config, model, folder, stage, context)
        store.warn = recorder.warn
        if text:
            recorder.note(text)
        if device.type == "cpu" and config.dtype == "auto" and multiplies_bfloat16():
            recorder.note(
                "Products are taken in float32. This CPU has units for bfloat16, which are faster "
                "and round more: dtype bfloat16 (--dtype bfloat16)."
            )
        if was_begun and found is None:
            recorder.warn(
                f"The run that was begun in {folder} has left no checkpoint, so it begins anew. "
                "save_every says how often one is written."
            )
    result = train(stage, model, config, folder, store=store, recorder=recorder, world=world)
    figures = None if recorder is None else recorder.figures
    finished = Finished(result, figures, text)
    if settings.lora.rank and result.is_complete and world.is_first:
        assert base is not None, "adapters are added to a model that is there"
        named = folder / BASE_FOLDER if is_gguf_path(base) else base
        unexported = None if named == base else (base, named)
        _replace_adapters(model, folder / ADAPTER_FOLDER, named, tokenizer, unexported)
        finished = replace(finished, adapter=folder / ADAPTER_FOLDER, unexported=unexported)
    return finished


def _replace_adapters(
    model: Model,
    folder: Path,
    base: Path,
    tokenizer: Tokenizer,
    unexported: tuple[Path, Path] | None,
) -> None:
    """Write the adapters of the end; those of a run that has been made longer since go."""
    if folder.exists():
        shutil.rmtree(folder)
    save_adapters(
        model,
        folder,
        base=str(base.absolute()),
        tokenizer=tokenizer,
        exported_from=None if unexported is None else str(unexported[0].absolute()),
    )


def _instruments(
    settings: RunSettings,
    config: TrainConfig,
    model: Model,
    folder: Path,
    stage: Stage,
    context: RunContext,
) -> Instruments:
    device: torch.device = next(model.parameters()).device
    effort = None
    if not settings.lora.rank:  # the estimate knows no frozen weights
        effort = measured_effort(
            model.config,
            seq_len=config.seq_len,
            device=device,
            dtype=resolve_dtype(config.dtype, device),
            processes=context.world.size,
        )
    return Instruments(
        folder,
        settings.instruments,
        baselines=stage.baselines(),
        effort=effort,
        console=context.console,
        run_config=settings.model_dump(mode="json"),
    )
