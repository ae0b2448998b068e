"""A whole pretraining run as one function: text, tokenizer, model, stage, loop, checkpoints.

The command, recipes and tests all start here. Text is prepared once and kept; see `data/prepare`.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ziphius.core.device import resolve_device
from ziphius.core.files import existing_path
from ziphius.data.baselines import Baselines, baselines
from ziphius.data.config import DataConfig
from ziphius.data.loader import Loader, MixLoader
from ziphius.data.prepare import prepare
from ziphius.data.report import mix_table
from ziphius.data.validation import ValidationSet
from ziphius.dist.world import World, first_before_others, local_device
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.models.published import read_config
from ziphius.models.rebuild import rebuilt, refuse_missing_rows, resize_embeddings
from ziphius.models.weights import tokenizer_path
from ziphius.text import special
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.text.vocabulary import FULL_SIZE, deepseek_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.loading import load_to_train, refuse_untrainable, settle_dtype
from ziphius.train.rates import GOING_ON_SHARE, peak_rate
from ziphius.train.run import (
    PLAIN,
    Finished,
    RunContext,
    add_adapters_if_asked,
    refuse_longer_rows,
    refuse_mtp_without_layers,
    run_stage,
)
from ziphius.train.settings import EXTENSION_SHARE, PretrainSettings
from ziphius.train.stages.extend import Extend, extended
from ziphius.train.stages.pretrain import Pretrain


def run_pretraining(
    settings: PretrainSettings, folder: Path, context: RunContext = PLAIN
) -> Finished:
    """Pretrain, extend the context, or go on with either where the folder has a checkpoint."""
    world = context.world
    device = local_device(resolve_device(settings.training.device))
    model, tokenizer = _model_and_tokenizer(settings)
    config = add_adapters_if_asked(model, settings.lora, _with_rate(settings, model.config))
    model.to(device)
    text_config, notes = _fitting_data(settings, tokenizer)
    if settings.training.learning_rate is None:
        notes.append(f"Peak learning rate {config.learning_rate:.1e}, from the model's size.")
    data = first_before_others(world, device, lambda: prepare(text_config, tokenizer))
    loader = MixLoader(
        data,
        seq_len=config.seq_len,
        seed=config.seed,
        rows=config.batch_sizes,
        micro_batch_size=config.resolved_micro_batch_size(world.size),
    )
    validation, measured = _validation(loader, config, world, device)
    stage_class = Pretrain if settings.extend_context is None else Extend

    def build(rows: Loader) -> Pretrain:
        return stage_class(
            rows,
            model.config,
            config,
            validation=validation,
            baselines=measured,
            data_fingerprint=data.fingerprint,
            world=world,
        )

    finished = run_stage(
        settings,
        folder,
        context,
        config=config,
        model=model,
        tokenizer=tokenizer,
        loader=loader,
        build=build,
        base=settings.from_model,
        text=" ".join(notes),
    )
    table = mix_table(loader, config.batch_sizes.first_row(finished.result.step))
    return replace(finished, table=table)


def _model_and_tokenizer(settings: PretrainSettings) -> tuple[Model, Tokenizer]:
    """Build the model, or load it."""
    config = _in_numbers(settings)
    if settings.from_model is None:
        model = _new_model(settings.preset, config)
        size = model.config.vocab_size
        cut = deepseek_tokenizer(size if size < FULL_SIZE else None)
        tokenizer = cut if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    else:
        model = load_to_train(
            settings.from_model, config, settings.lora, drop_mtp=settings.drop_mtp
        )
        tokenizer = load_tokenizer(tokenizer_path(settings.from_model))
        if settings.resize_embeddings:
            model = resize_embeddings(model, tokenizer.vocab_size)
        if settings.extend_context is not None:
            model = _stretched(model, settings, settings.extend_context)
    refuse_missing_rows(model.config, tokenizer.vocab_size)
    refuse_mtp_without_layers(model, config)
    refuse_longer_rows(model, config, ", or extend a trained one with extend_context")
    return model, tokenizer


def _in_numbers(settings: PretrainSettings) -> TrainConfig:
    """Return how the stage trains, in the numbers that follow from the model it begins with."""
    if settings.from_model is None:
        return settings.training
    return settle_dtype(settings.training, settings.from_model)


def _with_rate(settings: PretrainSettings, model: ModelConfig) -> TrainConfig:
    """Take a rate that fits the model where none was given: less for one that is trained."""
    config, share = _in_numbers(settings), 1.0
    if settings.from_model is not None:
        share = GOING_ON_SHARE if settings.extend_context is None else EXTENSION_SHARE
    return config.model_copy(
        update={"learning_rate": peak_rate(config.learning_rate, model, share)}
    )


def _fitting_data(settings: PretrainSettings, tokenizer: Tokenizer) -> tuple[DataConfig, list[str]]:
    """Leave code in its order where the vocabulary cannot mark a hole and nobody asked for it."""
    data = settings.data
    tokens = (special.FIM_BEGIN, special.FIM_HOLE, special.FIM_END)
    has_tokens = all(tokenizer.has_token(token) for token in tokens)
    if has_tokens or data.fim_rate is not None or not data.resolved_fim_rate:
        return data, []
    note = "No code is filled in the middle: the vocabulary has no tokens for it."
    return data.model_copy(update={"fim_rate": 0.0}), [note]


def _new_model(preset: str, training: TrainConfig) -> Model:
    path = existing_path(preset)
    config = get_preset(preset) if path is None else read_config(path)
    refuse_untrainable(preset, config, local_device(resolve_device(training.device)))
    model = Model(config)
    model.initialize(training.seed)
    return model


def _stretched(model: Model, settings: PretrainSettings, context: int) -> Model:
    """Give trained weights an architecture with a longer context."""
    trained = None if model.config.rope_scaling is not None else settings.train.seq_len
    config = extended(model.config, context, trained_context=trained, factor=settings.yarn_factor)
    return rebuilt(model, config)


def _validation(
    loader: MixLoader, config: TrainConfig, world: World, device: torch.device
) -> tuple[ValidationSet | None, Baselines | None]:
    """Choose the held-out rows and measure what humble models reach on them."""
    if not config.validate_every:
        return None, None
    chosen = ValidationSet(loader.data, seq_len=config.seq_len, rows=config.validate_rows)
    return chosen, first_before_others(world, device, lambda: baselines(loader, chosen))
