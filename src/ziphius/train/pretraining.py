"""A whole pretraining run as one function: text, tokenizer, model, stage, loop, checkpoints.

The command, recipes and tests all start here. Text is prepared once and kept; see `data/prepare`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import model_validator
from rich.console import Console
from rich.table import Table

from ziphius.core.config import Config
from ziphius.core.device import resolve_device, resolve_dtype
from ziphius.core.errors import ConfigError
from ziphius.data.config import DataConfig
from ziphius.data.floors import Floors, floors
from ziphius.data.loader import MixLoader
from ziphius.data.prefetch import Prefetcher
from ziphius.data.prepare import prepare
from ziphius.data.report import mix_table
from ziphius.data.validation import ValidationSet
from ziphius.dist.world import ALONE, World, first_before_others, local_device
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.models.published import read_config
from ziphius.models.weights import load
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.text.vocabulary import FULL_SIZE, deepseek_tokenizer
from ziphius.train.checkpoint import CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.instruments import Figures, Instruments, InstrumentsConfig, measured_effort
from ziphius.train.loop import train
from ziphius.train.lora import LoraConfig, add_adapters
from ziphius.train.result import TrainResult
from ziphius.train.stages.extend import Extend, extended, extension_training
from ziphius.train.stages.pretrain import Pretrain


class PretrainSettings(Config):
    """What a pretraining run is made of."""

    preset: str = "v3-1m"
    """Architecture of a new model: a preset, or the path of a config.json."""
    from_model: Path | None = None
    """Model folder to go on from, with its tokenizer, instead of new weights."""
    tokenizer: Path | None = None
    """Folder of a tokenizer; by default DeepSeek's vocabulary cut to the model's size."""
    extend_context: int | None = None
    """Stretch the context of `from_model` to this many tokens with YaRN, and train on rows of that
    length; train.context says what it was trained on, and rates and rows are derived from train."""
    yarn_factor: float | None = None
    """How far the rotary frequencies are stretched; by default just enough."""
    data: DataConfig = DataConfig()
    """The text."""
    train: TrainConfig = TrainConfig()
    """How to train."""
    lora: LoraConfig = LoraConfig()
    """Train adapters of low rank instead of all weights."""
    instruments: InstrumentsConfig = InstrumentsConfig()
    """What is shown and kept of the run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.from_model is None:
            if self.extend_context is not None:
                raise ConfigError("extend_context needs from_model, a trained model.")
            if self.lora.rank:
                raise ConfigError("lora.rank needs from_model, a trained model.")
        elif self.tokenizer is not None:
            raise ConfigError("tokenizer has no effect with from_model, which brings its own.")
        elif self.preset != type(self).model_fields["preset"].default:
            raise ConfigError("preset has no effect with from_model, which brings its own.")
        if self.yarn_factor is not None and self.extend_context is None:
            raise ConfigError("yarn_factor has no effect without extend_context.")
        return self

    @property
    def training(self) -> TrainConfig:
        """Return how the stage trains: `train`, or what an extension derives from it."""
        if self.extend_context is None:
            return self.train
        return extension_training(self.train, self.extend_context)


FLOORS = ("uniform", "unigram", "bigram")


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its instruments saw."""

    result: TrainResult
    figures: Figures | None
    """None on all ranks but the first."""
    table: Table
    """What each domain gave."""


def run_pretraining(
    settings: PretrainSettings,
    folder: Path,
    *,
    world: World = ALONE,
    require_exact: bool = False,
    console: Console | None = None,
) -> Finished:
    """Pretrain, extend the context, or go on with either where the folder has a checkpoint.

    Args:
        settings: of the run.
        folder: of the run.
        world: the ranks that do it together; each calls this.
        require_exact: refuse to resume with other numbers than those of an uninterrupted run.
        console: for people.
    """
    config = settings.training
    device = local_device(resolve_device(config.device))
    model, tokenizer = _model_and_tokenizer(settings, device)
    data = first_before_others(world, device, lambda: prepare(settings.data, tokenizer))
    loader = MixLoader(
        data,
        context=config.context,
        seed=config.seed,
        rows=config.rows,
        micro_rows=config.rows_at_once(world.size),
    )
    validation, measured = _validation(loader, config, world, device)
    store = CheckpointStore(
        folder, config, tokenizer=tokenizer, world=world, require_exact=require_exact
    )
    recorder = None
    if world.is_first:
        recorder = _instruments(settings, model, folder, measured, world, console)
    with Prefetcher(loader, workers=config.workers) as prefetcher:
        stage_class = Pretrain if settings.extend_context is None else Extend
        stage = stage_class(
            prefetcher,
            model.config,
            config,
            validation=validation,
            floors=measured,
            data_fingerprint=data.fingerprint,
            world=world,
        )
        result = train(stage, model, config, folder, store=store, recorder=recorder, world=world)
    figures = None if recorder is None else recorder.figures
    return Finished(result, figures, mix_table(loader, config.rows.first_row(result.step)))


def _model_and_tokenizer(
    settings: PretrainSettings, device: torch.device
) -> tuple[Model, Tokenizer]:
    """Build or load the model in float32, on the device."""
    config = settings.training
    if settings.from_model is None:
        model = _new_model(settings.preset, config.seed)
        size = model.config.vocab_size
        cut = deepseek_tokenizer(size if size < FULL_SIZE else None)
        tokenizer = cut if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    else:
        model = load(settings.from_model, dtype=torch.float32)
        tokenizer = load_tokenizer(settings.from_model)
        if settings.extend_context is not None:
            model = _stretched(model, settings, settings.extend_context)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size} rows for them."
        )
    if config.context > model.config.max_position_embeddings:
        raise ConfigError(
            f"context = {config.context}: the model is made for "
            f"{model.config.max_position_embeddings} tokens. Extend a trained one with "
            "extend_context."
        )
    if settings.lora.rank:
        add_adapters(model, settings.lora, seed=config.seed)
    return model.to(device), tokenizer


def _new_model(preset: str, seed: int) -> Model:
    path = Path(preset)
    model = Model(read_config(path) if path.exists() else get_preset(preset))
    model.initialize(seed)
    return model


def _stretched(model: Model, settings: PretrainSettings, context: int) -> Model:
    """Give trained weights an architecture with a longer context."""
    trained = None if model.config.rope_scaling is not None else settings.train.context
    config = extended(model.config, context, trained_context=trained, factor=settings.yarn_factor)
    longer = Model(config)
    longer.load_state_dict(model.state_dict())
    return longer


def _validation(
    loader: MixLoader, config: TrainConfig, world: World, device: torch.device
) -> tuple[ValidationSet | None, Floors | None]:
    """Choose the held-out rows and measure what humble models reach on them."""
    if not config.validate_every:
        return None, None
    chosen = ValidationSet(loader.data, context=config.context, rows=config.validate_rows)
    return chosen, first_before_others(world, device, lambda: floors(loader, chosen))


def _instruments(
    settings: PretrainSettings,
    model: Model,
    folder: Path,
    measured: Floors | None,
    world: World,
    console: Console | None,
) -> Instruments:
    config = settings.training
    device = next(model.parameters()).device
    known = {} if measured is None else measured.total.model_dump()
    return Instruments(
        folder,
        settings.instruments,
        floors={name: known[name] for name in FLOORS if name in known},
        effort=measured_effort(
            model.config,
            context=config.context,
            device=device,
            dtype=resolve_dtype(config.dtype, device),
            processes=world.size,
        ),
        console=console,
        run_config=settings.model_dump(mode="json"),
    )
