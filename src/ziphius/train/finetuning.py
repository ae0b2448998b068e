"""A whole run of supervised fine-tuning as one function: conversations, model, stage, loop.

The command, recipes and tests all start here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.data.conversation_baselines import conversation_baselines
from ziphius.data.conversation_config import ConversationSources
from ziphius.data.conversation_encode import Encoding
from ziphius.data.conversation_shards import PreparedConversations, prepare_conversations
from ziphius.data.conversations import (
    ConversationLoader,
    Conversations,
    fill_rows,
    pack,
    validation_batches,
)
from ziphius.data.loader import Loader
from ziphius.dist.world import World, first_before_others, local_device
from ziphius.models.model import Model
from ziphius.models.rebuild import refuse_missing_rows, resize_embeddings
from ziphius.models.weights import tokenizer_path
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.epochs import Pacing, suited
from ziphius.train.loading import load_to_train, settle_dtype
from ziphius.train.rates import finetuning_share, peak_rate
from ziphius.train.run import (
    PLAIN,
    Finished,
    RunContext,
    add_adapters_if_asked,
    refuse_longer_rows,
    refuse_mtp_without_layers,
    run_stage,
)
from ziphius.train.settings import SftSettings
from ziphius.train.stages.sft import Sft


@dataclass(frozen=True)
class NewModel:
    """A model that is made when a run starts, always with the same weights."""

    build: Callable[[], Model]
    speaks_as: Path
    """Folder whose tokenizer it has."""


def run_sft(
    settings: SftSettings,
    folder: Path,
    context: RunContext = PLAIN,
    *,
    stage: Callable[..., Sft] = Sft,
    new: NewModel | None = None,
) -> Finished:
    """Teach a model conversations, or go on where the folder has a checkpoint.

    Args:
        settings: of the run.
        folder: of the run.
        context: how the run was called.
        stage: takes the arguments of `Sft`; another stage that learns from conversations.
        new: what to teach instead of `settings.model`.
    """
    origin = settings.model if new is None else new.speaks_as
    if origin is None or not settings.data:
        raise ConfigError(f"Give {' and '.join(settings.missing)}.")
    device = local_device(resolve_device(settings.train.device))
    prepared = first_before_others(
        context.world, device, lambda: _prepared(settings, origin, context)
    )
    learned, tokenizer = prepared.learned, prepared.tokenizer
    held_out = fill_rows(prepared.held_out, settings.train.validate_rows)
    config, loader = _paced(settings, learned, context.world, origin if new is None else None)
    model = _model(settings, origin, new, tokenizer, config)
    config = _training(settings, config, loader, held_out, model, is_new=new is not None)
    refuse_longer_rows(model, config)
    config = add_adapters_if_asked(model, settings.lora, config)
    model.to(device)
    baselines = conversation_baselines(learned, held_out, model.config.vocab_size)

    def build(rows: Loader) -> Sft:
        return stage(
            rows,
            model.config,
            config,
            validation=list(validation_batches(held_out, config.batch_sizes.first)),
            baselines=baselines,
            data_fingerprint=loader.fingerprint,
            world=context.world,
        )

    return run_stage(
        settings,
        folder,
        context,
        config=config,
        model=model,
        tokenizer=tokenizer,
        loader=loader,
        build=build,
        base=origin,
        text="\n".join(
            [_description(loader, held_out, prepared), *_chosen(settings, loader, config)]
        ),
    )


def _model(
    settings: SftSettings,
    origin: Path,
    new: NewModel | None,
    tokenizer: Tokenizer,
    config: TrainConfig,
) -> Model:
    """Load the model that is taught, or make it."""
    if new is None:
        model = load_to_train(origin, config, settings.lora, drop_mtp=settings.drop_mtp)
        if settings.resize_embeddings:
            model = resize_embeddings(model, tokenizer.vocab_size)
    elif settings.drop_mtp or settings.resize_embeddings:
        name = "drop_mtp" if settings.drop_mtp else "resize_embeddings"
        raise ConfigError(f"{name} has no effect on a new model.")
    else:
        model = new.build()
    refuse_missing_rows(model.config, tokenizer.vocab_size)
    refuse_mtp_without_layers(model, settings.train)
    return model


def _prepared(settings: SftSettings, origin: Path, context: RunContext) -> PreparedConversations:
    """Encode what is learned and what is measured on, or find it done; names skipped rows."""
    console = context.console or Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return prepare_conversations(
        ConversationSources(
            data=settings.data,
            validation=settings.validation,
            hold_out=settings.hold_out,
            most=settings.max_conversations,
            strict=settings.strict,
            max_bad_share=settings.max_bad_share,
        ),
        Encoding(
            seq_len=settings.train.seq_len,
            over_long=settings.over_long,
            thinking=settings.thinking,
            earlier_turns=settings.earlier_turns,
            think_blocks=settings.think_blocks,
        ),
        load_tokenizer(tokenizer_path(origin)),
        chat_format=settings.chat_format,
        say=say if context.world.is_first else None,
    )


def _paced(
    settings: SftSettings, learned: Conversations, world: World, source: Path | None
) -> tuple[TrainConfig, ConversationLoader]:
    """Settle the numbers, the rows of a step and how often all are seen, and lay them out."""
    pacing = _pacing(settings, learned, world)
    config = settings.train if source is None else settle_dtype(settings.train, source)
    config = config.model_copy(update={"global_batch_size": pacing.global_batch_size})
    loader = ConversationLoader(
        learned,
        seed=config.seed,
        epochs=pacing.epochs or None,
        rows=config.batch_sizes,
        micro_batch_size=config.resolved_micro_batch_size(world.size),
    )
    return config, loader


def _pacing(settings: SftSettings, learned: Conversations, world: World) -> Pacing:
    """Take batch and epochs as they are given, or as the rows of an epoch want them."""
    config = settings.train
    if config.global_batch_size is not None and settings.epochs is not None:
        return Pacing(config.global_batch_size, settings.epochs)
    return suited(
        max(1, len(pack(learned, range(len(learned.kept))))),
        global_batch_size=config.global_batch_size,
        epochs=settings.epochs,
        multiple=world.size * (config.micro_batch_size or 1),
    )


def _training(
    settings: SftSettings,
    config: TrainConfig,
    loader: ConversationLoader,
    held_out: Conversations,
    model: Model,
    *,
    is_new: bool,
) -> TrainConfig:
    """Settle what follows from the conversations and the model."""
    share = finetuning_share(is_new=is_new, has_adapters=bool(settings.lora.rank))
    changes: dict[str, object] = {
        "validate_every": config.validate_every if held_out.kept else 0,
        "learning_rate": peak_rate(config.learning_rate, model.config, share),
    }
    if loader.total_rows is not None:
        changes["budget"] = f"{config.batch_sizes.steps_for(loader.total_rows)}-steps"
    return config.model_copy(update=changes)


def _chosen(
    settings: SftSettings, loader: ConversationLoader, config: TrainConfig
) -> Iterator[str]:
    """Say what was not given and therefore chosen, and from what."""
    parts = []
    if settings.train.global_batch_size is None:
        parts.append(f"global_batch_size {config.global_batch_size}")
    if settings.epochs is None:
        parts.append(f"epochs {loader.epochs}")
    if parts and loader.total_rows is not None:
        parts[-1] += (
            f" ({loader.total_rows // (loader.epochs or 1):,} rows an epoch make {config.budget})"
        )
    if settings.train.learning_rate is None:
        whose = "adapters, ten times that of all weights," if settings.lora.rank else "all weights"
        parts.append(f"learning_rate {config.learning_rate:.1e} ({whose} of a model of this size)")
    if parts:
        yield f"Chosen, as not given: {', '.join(parts)}."


def _extent(loader: ConversationLoader) -> str:
    rows = loader.total_rows
    return "rows without end" if rows is None else f"{rows:,} rows in {loader.epochs} epochs"


def _description(
    loader: ConversationLoader, held_out: Conversations, prepared: PreparedConversations
) -> str:
    """Say what is learned from, what was left out, and what was read in another way."""
    report, spoken = prepared.report, prepared.tokenizer.chat_format
    learned = loader.conversations
    samples = len(learned.kept)
    as_samples = f" as {samples:,} samples" if samples != learned.sources else ""
    parts = [
        f"{learned.sources:,} conversations{as_samples} in the format {spoken}",
        f"{learned.tokens:,} tokens, {100 * learned.loss_tokens / learned.tokens:.0f} % of them "
        "learned",
        f"{_extent(loader)}, {100 * loader.filled_share:.0f} % filled",
        f"{len(held_out.kept):,} others measured on"
        if held_out.kept
        else "none is held out, so nothing is measured: there are too few for hold_out, or it is 0",
    ]
    if too_long := learned.too_long + held_out.too_long:
        longest = max(learned.longest, held_out.longest)
        parts.append(
            f"{too_long:,} longer than a row of {learned.seq_len} (the longest has {longest:,})"
        )
    if unanswered := learned.unanswered + held_out.unanswered:
        parts.append(f"{unanswered:,} left out, as no answer is in them or it was cut off")
    if report.skipped:
        parts.append(f"{report.skipped:,} of {report.read:,} rows skipped, as they cannot be used")
    if report.files_set_aside:
        parts.append(f"{report.files_set_aside:,} files set aside, as no row of theirs fits")
    parts.append(f"{learned.loss_tokens / learned.sources:,.0f} tokens a conversation learned")
    changes = report.changes + Counter(learned.changes) + Counter(held_out.changes)
    parts += [f"{count:,} {words}" for words, count in changes.items()]
    return " ".join([*prepared.notes, "; ".join(parts) + "."])
