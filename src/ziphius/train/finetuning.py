"""A whole run of supervised fine-tuning as one function: conversations, model, stage, loop.

The command, recipes and tests all start here.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.data.conversation_floors import conversation_floors
from ziphius.data.conversations import (
    ConversationEncoder,
    ConversationLoader,
    Conversations,
    fill_rows,
    validation_batches,
)
from ziphius.data.loader import Loader
from ziphius.data.messages import is_held_out, read_conversations
from ziphius.data.row_report import RowReport
from ziphius.dist.world import local_device
from ziphius.models.model import Model
from ziphius.models.rebuild import resize_embeddings
from ziphius.models.weights import tokenizer_path
from ziphius.text.chat import CHAT_FORMATS, get_chat_format
from ziphius.text.special import THINK
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.loading import load_to_train, settle_dtype
from ziphius.train.run import (
    PLAIN,
    Finished,
    RunContext,
    add_adapters_if_asked,
    refuse_longer_rows,
    refuse_mtp_without_layers,
    refuse_other_tokenizer,
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
    tokenizer = _tokenizer(settings, origin)
    learned, held_out, report = _conversations(settings, tokenizer, context)
    loader = ConversationLoader(
        learned,
        seed=settings.train.seed,
        epochs=settings.epochs or None,
        rows=settings.train.rows,
        micro_rows=settings.train.rows_at_once(context.world.size),
    )
    config = _training(settings, loader, held_out, origin if new is None else None)
    model = _model(settings, origin, new, tokenizer, config)
    refuse_longer_rows(model, config)
    config = add_adapters_if_asked(model, settings.lora, config)
    model.to(device)
    floors = conversation_floors(learned, held_out, model.config.vocab_size)

    def build(rows: Loader) -> Sft:
        return stage(
            rows,
            model.config,
            config,
            validation=list(validation_batches(held_out, config.rows.first)),
            floors=floors,
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
        text=_description(loader, held_out, tokenizer, report),
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
    refuse_other_tokenizer(model, tokenizer)
    refuse_mtp_without_layers(model, settings.train)
    return model


def _tokenizer(settings: SftSettings, path: Path) -> Tokenizer:
    """Load the model's tokenizer; it will carry the chat format that is taught."""
    tokenizer = load_tokenizer(tokenizer_path(path))
    name = settings.chat_format or tokenizer.chat_format
    if name is None:
        raise ConfigError(
            f"{path} names no chat format: give chat_format, one of {', '.join(CHAT_FORMATS)}."
        )
    direct = get_chat_format(name).direct
    is_open = settings.chat_format is None and settings.thinking is None
    if direct is not None and is_open and not _anyone_reasons(settings.data):
        name = direct  # a prompt that opens a think block would meet a model that never closed one
    return tokenizer.with_chat_format(name)


def _anyone_reasons(data: Sequence[Path]) -> bool:
    """Tell whether any answer has reasoning; what cannot be read is told of when it is encoded."""
    unheard = RowReport(strict=False, max_bad_share=1.0, say=None)
    return any(
        message.role == "assistant" and (message.reasoning_content or THINK in message.content)
        for path in data
        for conversation in read_conversations(path, unheard)
        for message in conversation.messages
    )


def _report(settings: SftSettings, context: RunContext) -> RowReport:
    """Name skipped rows to people, on the first rank alone."""
    console = context.console or Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return RowReport(
        strict=settings.strict,
        max_bad_share=settings.max_bad_share,
        say=say if context.world.is_first else None,
    )


def _conversations(
    settings: SftSettings, tokenizer: Tokenizer, context: RunContext
) -> tuple[Conversations, Conversations, RowReport]:
    """Read, share out and encode what is learned and what is measured on, row by row."""
    assert tokenizer.chat_format is not None
    report = _report(settings, context)
    learned, held_out = (
        ConversationEncoder(
            tokenizer,
            get_chat_format(tokenizer.chat_format),
            context=settings.train.context,
            over_long=settings.over_long,
            thinking=settings.thinking,
            earlier_turns=settings.earlier_turns,
            think_blocks=settings.think_blocks,
            report=report,
        )
        for _ in range(2)
    )
    share = settings.hold_out if settings.validation is None else 0.0
    for path in settings.data:
        for conversation in read_conversations(path, report):
            (held_out if is_held_out(conversation, share) else learned).add(conversation)
    if settings.validation is not None:
        for conversation in read_conversations(settings.validation, report):
            held_out.add(conversation)
    report.check()
    measured = fill_rows(held_out.result(), settings.train.validate_rows)
    return learned.result(), measured, report


def _training(
    settings: SftSettings,
    loader: ConversationLoader,
    held_out: Conversations,
    source: Path | None,
) -> TrainConfig:
    """Settle what follows from conversations and model: length, what is measured, numbers."""
    config = settings.train if source is None else settle_dtype(settings.train, source)
    changes: dict[str, object] = {
        "validate_every": config.validate_every if held_out.kept else 0,
    }
    if loader.total_rows is not None:
        changes["budget"] = f"{config.rows.steps_for(loader.total_rows)}-steps"
    return config.model_copy(update=changes)


def _extent(loader: ConversationLoader) -> str:
    rows = loader.total_rows
    return "rows without end" if rows is None else f"{rows:,} rows in {loader.epochs} epochs"


def _description(
    loader: ConversationLoader, held_out: Conversations, tokenizer: Tokenizer, report: RowReport
) -> str:
    """Say what is learned from, what was left out, and what was read in another way."""
    learned = loader.conversations
    samples = len(learned.kept)
    as_samples = f" as {samples:,} samples" if samples != learned.sources else ""
    parts = [
        f"{learned.sources:,} conversations{as_samples} in the format {tokenizer.chat_format}",
        f"{learned.tokens:,} tokens, {100 * learned.learned_tokens / learned.tokens:.0f} % of them "
        "learned",
        f"{_extent(loader)}, {100 * loader.filled_share:.0f} % filled",
        f"{len(held_out.kept):,} others measured on"
        if held_out.kept
        else "none is held out, so nothing is measured: there are too few for hold_out, or it is 0",
    ]
    if too_long := learned.too_long + held_out.too_long:
        longest = max(learned.longest, held_out.longest)
        parts.append(
            f"{too_long:,} longer than a row of {learned.context} (the longest has {longest:,})"
        )
    if unanswered := learned.unanswered + held_out.unanswered:
        parts.append(f"{unanswered:,} left out, as no answer is in them or it was cut off")
    if report.skipped:
        parts.append(f"{report.skipped:,} of {report.read:,} rows skipped, as they cannot be used")
    parts.append(f"{learned.learned_tokens / learned.sources:,.0f} tokens a conversation learned")
    changes = report.changes + Counter(learned.changes) + Counter(held_out.changes)
    parts += [f"{count:,} {words}" for words, count in changes.items()]
    return "; ".join(parts) + "."
