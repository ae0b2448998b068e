"""What a run of each training command is made of; options are read from here, without torch."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.data.config import DataConfig, OverLong
from ziphius.data.conversation_config import EarlierTurns, ThinkBlocks
from ziphius.models.lora_config import LoraConfig
from ziphius.train.config import TrainConfig
from ziphius.train.instruments_config import InstrumentsConfig
from ziphius.train.schedules import LambdaSchedule

DEFAULT_BUDGET = TrainConfig.model_fields["budget"].default
MAX_BAD_SHARE = 0.1
"""One slip in a small file costs its row; a tenth of a large one is another format, not slips."""
EXTENSION_SHARE = 7.3 / 220.0
"""V3's rate of context extension as a share of the highest of pretraining."""


class RunSettings(Config):
    """What every run is made of, beside what it learns from."""

    train: TrainConfig = TrainConfig()
    """How to train."""
    lora: LoraConfig = LoraConfig()
    """Train adapters of low rank instead of all weights; router biases are frozen then."""
    instruments: InstrumentsConfig = InstrumentsConfig()
    """What is shown and kept of the run."""

    @property
    def missing(self) -> list[str]:
        """Name what the run cannot do without and was not given, as the command line spells it."""
        return []


def _refuse_changed_base(lora: LoraConfig, *, resized: bool, extended: bool = False) -> None:
    """Refuse adapters on a model that is nowhere: they alone are saved."""
    if resized and lora.rank:
        raise ConfigError(
            "resize_embeddings and lora.rank: adapters alone are saved, and would fit no model "
            "that is there. Resize it first: ziphius export MODEL OUT --resize-embeddings."
        )
    if extended and lora.rank:
        raise ConfigError(
            "extend_context and lora.rank: adapters alone are saved, and the model they are for "
            "has the shorter context. Extend it with all its weights."
        )


class PretrainSettings(RunSettings):
    """What a pretraining run is made of."""

    preset: str = "v3-1m"
    """Architecture of a new model: a preset, or the path of a config.json."""
    from_model: Path | None = None
    """Model folder to continue from, with its tokenizer, instead of new weights."""
    drop_mtp: bool = False
    """Leave out the MTP layers of `from_model`."""
    resize_embeddings: bool = False
    """Give the model rows for tokens that were added to its tokenizer; each begins as the mean of
    those that are there."""
    tokenizer: Path | None = None
    """Folder of a tokenizer; by default DeepSeek's vocabulary cut to the model's size."""
    extend_context: int | None = None
    """Stretch the context of `from_model` to this many tokens with YaRN, and train on rows of that
    length; train.seq_len says what it was trained on, and rates and rows are derived from train."""
    yarn_factor: float | None = None
    """How far the rotary frequencies are stretched; by default just enough."""
    data: DataConfig = DataConfig()
    """The text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.from_model is None:
            if self.extend_context is not None:
                raise ConfigError("extend_context needs from_model, a trained model.")
            if self.lora.rank:
                raise ConfigError("lora.rank needs from_model, a trained model.")
            if self.drop_mtp:
                raise ConfigError("drop_mtp needs from_model, a trained model.")
            if self.resize_embeddings:
                raise ConfigError("resize_embeddings needs from_model, a trained model.")
        elif self.tokenizer is not None:
            raise ConfigError("tokenizer has no effect with from_model, which brings its own.")
        elif self.preset != type(self).model_fields["preset"].default:
            raise ConfigError("preset has no effect with from_model, which brings its own.")
        _refuse_changed_base(
            self.lora,
            resized=self.resize_embeddings,
            extended=self.extend_context is not None,
        )
        if self.yarn_factor is not None and self.extend_context is None:
            raise ConfigError("yarn_factor has no effect without extend_context.")
        return self

    @property
    def training(self) -> TrainConfig:
        """Return how the stage trains: `train`, or what an extension derives from it."""
        if self.extend_context is None:
            return self.train
        return extension_training(self.train, self.extend_context)


def extension_training(config: TrainConfig, seq_len: int) -> TrainConfig:
    """Derive how to train the extension from how the model was trained.

    The rate is V3's share of pretraining's, without warm-up and constant; a step has as many tokens
    as before, in fewer and longer rows. Router biases go on balancing.
    """
    rows = max(1, config.batch_sizes.full * config.seq_len // seq_len)
    changes = {
        "seq_len": seq_len,
        "learning_rate": config.learning_rate and EXTENSION_SHARE * config.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "global_batch_size": rows,
        "micro_batch_size": None,
        "rampup_batch_size": None,
        "rampup_steps": 0,
        "bias_until": 1.0,
    }
    return TrainConfig.model_validate(config.model_dump() | changes)


class SftTraining(TrainConfig):
    """How to fine-tune: shorter, gentler and in longer rows than pretraining."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; by default a tenth of what a new model of the size bears (5.8e-5 at 135M,
    6e-6 at 37B), and ten times that for adapters."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps over which the rate rises from 0; at most a tenth of the run."""
    seq_len: Annotated[int, Field(ge=2)] = 512
    """Sequence length: tokens of a row, which holds several conversations."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of an optimizer step; by default up to 8, and fewer where a run would have less than
    100 steps."""
    mtp: LambdaSchedule = LambdaSchedule(early=0.1, late=0.1)
    """Weight of the MTP loss, if the model has MTP layers."""
    validate_every: Annotated[int, Field(ge=0)] = 50
    """Steps between validations on held-out conversations, in addition to the first and the last; 0
    for none."""


class SftSettings(RunSettings):
    """What a run of supervised fine-tuning is made of."""

    model: Path | None = None
    """Model folder or .gguf file to teach, with its tokenizer."""
    drop_mtp: bool = False
    """Leave out the MTP layers of `model`."""
    resize_embeddings: bool = False
    """Give the model rows for tokens that were added to its tokenizer; each begins as the mean of
    those that are there."""
    data: tuple[Path, ...] = ()
    """Files of conversations, folders of such files, or hf:NAME for a data set of the hub: JSON
    Lines, JSON, parquet or arrow, packed or not; rows of {"messages": [...]}, with "tools" if it
    has any, ShareGPT's conversations, prompt and completion, Alpaca's instructions, or text."""
    max_conversations: Annotated[int, Field(ge=1)] | None = None
    """Most conversations that are learned from: a random sample of all where there are more."""
    epochs: Annotated[int, Field(ge=0)] | None = None
    """How often each conversation is seen, each time in another order; 0 for as often as
    train.budget lasts. By default 3, and up to 25 where they fill fewer than 34 rows."""
    chat_format: str | None = None
    """Chat format; by default the tokenizer's own, or where no answer in the data has reasoning
    one whose prompts open no think block."""
    thinking: bool | None = None
    """Whether an answer begins inside a think block, where the format can do both; by default
    where it has reasoning. With deepseek-r1 `False` lets the model learn when to open one."""
    earlier_turns: EarlierTurns = "expand"
    """What happens to turns whose reasoning the format drops from what comes later, so that in the
    whole conversation they would be learned bare: a sample of their own up to there, so that
    everything is learned once and as it is asked for (expand), or they are context only (mask),
    which is cheaper and teaches less."""
    think_blocks: ThinkBlocks = "parse"
    """What a <think> block in the content of an answer is: its reasoning, where the format thinks
    (parse), or letters like any other (text)."""
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = MAX_BAD_SHARE
    """Largest share of rows that cannot be used and are skipped, each named; more is an error."""
    strict: bool = False
    """Stop at the first row that cannot be used."""
    over_long: OverLong = "skip"
    """What happens to a conversation that no row holds: left out, cut at the end, or an error."""
    validation: Path | None = None
    """File or folder of conversations to measure on, instead of held-out ones."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the conversations that is kept from training and measured on."""
    train: TrainConfig = SftTraining()
    """How to train."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs != 0 and self.train.budget != DEFAULT_BUDGET:
            raise ConfigError(
                "train.budget has no effect: epochs says how long the run is. Set epochs to 0 to "
                "go by the budget."
            )
        _refuse_changed_base(self.lora, resized=self.resize_embeddings)
        held_out = type(self).model_fields["hold_out"].default
        if self.validation is not None and self.hold_out != held_out:
            raise ConfigError("hold_out has no effect with validation, a file to measure on.")
        if self.strict and self.max_bad_share != MAX_BAD_SHARE:
            raise ConfigError("--max-bad-share has no effect with --strict, which skips no row.")
        return self

    @property
    def missing(self) -> list[str]:
        """Name model and data where they were not given."""
        model = ["MODEL, the folder of a model to teach"] if self.model is None else []
        return model + ([] if self.data else ["--data, at least one file of conversations"])
