"""A whole run of supervised fine-tuning as one function: conversations, model, stage, loop.

The command, recipes and tests all start here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console

from ziphius.core.config import Config
from ziphius.core.device import resolve_device, resolve_dtype
from ziphius.core.errors import ConfigError
from ziphius.data.conversation_floors import conversation_floors
from ziphius.data.conversations import (
    ConversationLoader,
    Conversations,
    OverLong,
    encode_conversations,
    fill_rows,
    validation_batches,
)
from ziphius.data.messages import Conversation, read_conversations, split_held_out
from ziphius.data.prefetch import Prefetcher
from ziphius.dist.world import ALONE, World, local_device
from ziphius.models.model import Model
from ziphius.models.mtp import LambdaSchedule
from ziphius.models.weights import load
from ziphius.text.chat import CHAT_FORMATS, get_chat_format
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.train.checkpoint import CheckpointStore
from ziphius.train.config import TrainConfig
from ziphius.train.instruments import (
    Effort,
    Figures,
    Instruments,
    InstrumentsConfig,
    measured_effort,
)
from ziphius.train.loop import train
from ziphius.train.lora import LoraConfig, add_adapters, save_adapters
from ziphius.train.result import TrainResult
from ziphius.train.stages.sft import Sft

ADAPTER_FOLDER = "adapter"
DEFAULT_BUDGET = TrainConfig.model_fields["budget"].default


class SftTraining(TrainConfig):
    """How to fine-tune: shorter, gentler and in longer rows than pretraining."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate; small models take more, published ones took 5e-6."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps over which the rate rises from 0; at most a tenth of the run."""
    context: Annotated[int, Field(ge=2)] = 512
    """Tokens of a row, which holds several conversations."""
    mtp: LambdaSchedule = LambdaSchedule(early=0.1, late=0.1)
    """Weight of the loss of the layers that predict further tokens, if the model has them."""
    validate_every: Annotated[int, Field(ge=0)] = 50
    """Steps between measurements on held-out conversations, beside the first and the last; 0 for
    none."""


class SftSettings(Config):
    """What a run of supervised fine-tuning is made of."""

    model: Path | None = None
    """Model folder or .gguf file to teach, with its tokenizer."""
    data: tuple[Path, ...] = ()
    """Files of JSON Lines, a conversation on each: {"messages": [...]}, with "tools" if it has
    any."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """How often each conversation is seen, each time in another order."""
    chat_format: str | None = None
    """Chat format; by default the tokenizer's own."""
    over_long: OverLong = "skip"
    """What happens to a conversation that no row holds: left out, cut at the end, or an error."""
    validation: Path | None = None
    """File of conversations to measure on, instead of held-out ones."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the conversations that is kept from training and measured on."""
    train: TrainConfig = SftTraining()
    """How to train."""
    lora: LoraConfig = LoraConfig()
    """Train adapters of low rank instead of all weights; router biases stand still then."""
    instruments: InstrumentsConfig = InstrumentsConfig()
    """What is shown and kept of the run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train.budget != DEFAULT_BUDGET:
            raise ConfigError("train.budget has no effect: epochs says how long the run is.")
        held_out = type(self).model_fields["hold_out"].default
        if self.validation is not None and self.hold_out != held_out:
            raise ConfigError("hold_out has no effect with validation, a file to measure on.")
        return self


@dataclass(frozen=True)
class Tuned:
    """A run that has ended, and what its instruments saw."""

    result: TrainResult
    figures: Figures | None
    """None on all ranks but the first."""
    text: str
    """What was learned from, in a line."""
    adapter: Path | None = None
    """Folder of the adapters, of a run with LoRA that is complete."""


def run_sft(
    settings: SftSettings,
    folder: Path,
    *,
    world: World = ALONE,
    require_exact: bool = False,
    console: Console | None = None,
) -> Tuned:
    """Teach a model conversations, or go on where the folder has a checkpoint.

    Args:
        settings: of the run.
        folder: of the run.
        world: the ranks that do it together; each calls this.
        require_exact: refuse to resume with other numbers than those of an uninterrupted run.
        console: for people.
    """
    if settings.model is None or not settings.data:
        missing = "model" if settings.model is None else "data"
        raise ConfigError(f"{missing}: name the model and at least one file of conversations.")
    config = settings.train
    device = local_device(resolve_device(config.device))
    tokenizer = _tokenizer(settings, settings.model)
    learned, held_out = _conversations(settings, tokenizer)
    loader = ConversationLoader(
        learned,
        seed=config.seed,
        epochs=settings.epochs,
        rows=config.rows,
        micro_rows=config.rows_at_once(world.size),
    )
    config = _training(settings, loader, held_out)
    model = _model(settings, settings.model, device)
    store = CheckpointStore(
        folder, config, tokenizer=tokenizer, world=world, require_exact=require_exact
    )
    floors = conversation_floors(learned, held_out, model.config.vocab_size)
    text = _description(loader, held_out, tokenizer)
    recorder = None
    if world.is_first:
        recorder = _instruments(settings, config, model, folder, floors, world, console)
        recorder.note(text)
    with Prefetcher(loader, workers=config.workers) as prefetcher:
        stage = Sft(
            prefetcher,
            model.config,
            config,
            validation=list(validation_batches(held_out, config.rows.first)),
            floors=floors,
            data_fingerprint=loader.fingerprint,
            world=world,
        )
        result = train(stage, model, config, folder, store=store, recorder=recorder, world=world)
    adapter = None
    if settings.lora.rank and result.is_complete and world.is_first:
        adapter = folder / ADAPTER_FOLDER
        if not adapter.exists():
            save_adapters(model, adapter, base=str(settings.model))
    return Tuned(result, None if recorder is None else recorder.figures, text, adapter)


def _tokenizer(settings: SftSettings, path: Path) -> Tokenizer:
    """Load the model's tokenizer; it will carry the chat format that is taught."""
    tokenizer = load_tokenizer(path)
    name = settings.chat_format or tokenizer.chat_format
    if name is None:
        raise ConfigError(
            f"{path} names no chat format: give chat_format, one of {', '.join(CHAT_FORMATS)}."
        )
    get_chat_format(name)
    return tokenizer if name == tokenizer.chat_format else tokenizer.with_chat_format(name)


def _conversations(
    settings: SftSettings, tokenizer: Tokenizer
) -> tuple[Conversations, Conversations]:
    """Read, share out and encode what is learned and what is measured on."""
    everything: list[Conversation] = [
        conversation for path in settings.data for conversation in read_conversations(path)
    ]
    if settings.validation is None:
        learned, held_out = split_held_out(everything, settings.hold_out)
    else:
        learned, held_out = everything, list(read_conversations(settings.validation))
    assert tokenizer.chat_format is not None
    encoded = (
        encode_conversations(
            part,
            tokenizer,
            get_chat_format(tokenizer.chat_format),
            context=settings.train.context,
            over_long=settings.over_long,
        )
        for part in (learned, held_out)
    )
    first, second = encoded
    return first, fill_rows(second, settings.train.validate_rows)


def _training(
    settings: SftSettings, loader: ConversationLoader, held_out: Conversations
) -> TrainConfig:
    """Settle what follows from the conversations: the length of the run, and what is measured."""
    config = settings.train
    changes: dict[str, object] = {
        "budget": f"{config.rows.steps_for(loader.total_rows)}-steps",
        "validate_every": config.validate_every if held_out.kept else 0,
    }
    if settings.lora.rank:
        changes["bias_rate"] = 0.0  # adapters would not carry biases that moved
    return config.model_copy(update=changes)


def _model(settings: SftSettings, path: Path, device: torch.device) -> Model:
    """Load the model in float32, on the device, with adapters where they are asked for."""
    model = load(path, dtype=torch.float32)
    longest = model.config.max_position_embeddings
    if settings.train.context > longest:
        raise ConfigError(
            f"train.context = {settings.train.context}: the model is made for {longest} tokens; "
            f"give at most {longest}."
        )
    if settings.lora.rank:
        add_adapters(model, settings.lora, seed=settings.train.seed)
    return model.to(device)


def _description(loader: ConversationLoader, held_out: Conversations, tokenizer: Tokenizer) -> str:
    """Say what is learned from, and what was left out."""
    learned = loader.conversations
    parts = [
        f"{len(learned.kept):,} conversations in the format {tokenizer.chat_format}",
        f"{learned.tokens:,} tokens, {100 * learned.learned_tokens / learned.tokens:.0f} % of them "
        "learned",
        f"{loader.total_rows:,} rows in {loader.epochs} epochs, {100 * loader.filled_share:.0f} % "
        "filled",
        f"{len(held_out.kept):,} others measured on",
    ]
    if too_long := learned.too_long + held_out.too_long:
        longest = max(learned.longest, held_out.longest)
        parts.append(
            f"{too_long:,} longer than a row of {learned.context} (the longest has {longest:,})"
        )
    if unanswered := learned.unanswered + held_out.unanswered:
        parts.append(f"{unanswered:,} left out, as no answer is in them or it was cut off")
    return "; ".join(parts) + "."


def _instruments(
    settings: SftSettings,
    config: TrainConfig,
    model: Model,
    folder: Path,
    floors: Mapping[str, float],
    world: World,
    console: Console | None,
) -> Instruments:
    effort: Effort | None = None
    if not settings.lora.rank:  # the account knows no frozen weights
        device = next(model.parameters()).device
        effort = measured_effort(
            model.config,
            context=config.context,
            device=device,
            dtype=resolve_dtype(config.dtype, device),
            processes=world.size,
        )
    return Instruments(
        folder,
        settings.instruments,
        floors=floors,
        effort=effort,
        console=console,
        run_config=settings.model_dump(mode="json"),
    )
