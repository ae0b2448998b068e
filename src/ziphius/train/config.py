"""`TrainConfig`: how any stage is trained; what it is trained on is the stage's own business.

Defaults follow DeepSeek-V3 (arXiv 2412.19437, section 4.2) where a small run allows it.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import RenamedConfig
from ziphius.core.errors import ConfigError
from ziphius.train.budget import BudgetText, IntervalText
from ziphius.train.guard import GuardConfig
from ziphius.train.optimizer_config import OptimizerConfig
from ziphius.train.schedules import BatchSizeSchedule, LambdaSchedule

Dtype = Literal["auto", "float32", "bfloat16"]
GLOBAL_BATCH_SIZE = 8


class TrainConfig(RenamedConfig):
    """How long, how fast, in which batches and in which numbers a stage is trained."""

    renamed: ClassVar[Mapping[str, str]] = {
        "context": "seq_len",
        "batch_rows": "global_batch_size",
        "micro_rows": "micro_batch_size",
        "ramp_from_rows": "rampup_batch_size",
        "ramp_steps": "rampup_steps",
        "recompute": "activation_checkpointing",
    }
    budget: BudgetText = "10m"
    """How long: a time (90s, 10m, 2h), tokens (200M-tokens) or steps (500-steps). A time is turned
    into a number of steps, which is estimated again after every tenth of it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the first weights and the order of the data."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "auto"
    """Data type of matrix products; bfloat16 is autocast over float32 weights. auto takes it on
    accelerators, and on a CPU with units for it where the model is stored in it."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; by default 3e-3 for a new model of up to two million parameters, less for
    larger ones (6e-4 at 125M), and a tenth of it for one that is trained already."""
    schedule: Literal["constant", "cosine", "v2", "v3"] = "cosine"
    """How the rate falls: not at all, along a cosine to a tenth, or as V2 or V3 did."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the rate rises from 0; at most a tenth of the run."""

    seq_len: Annotated[int, Field(ge=2)] = 256
    """Sequence length: tokens of a row, which packed text fills."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = GLOBAL_BATCH_SIZE
    """Rows of an optimizer step, over all micro-batches and processes; a row has seq_len tokens."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of one forward pass of a process; by default all of its rows of the smallest step."""
    rampup_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Batch size to start with, a divisor of global_batch_size; it grows from there."""
    rampup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the batch size grows to global_batch_size."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """What turns gradients into steps."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0 switches clipping off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the running average of the weights; 0 keeps none."""
    validate_ema: bool = False
    """Measure the averaged weights instead of the trained ones."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and recompute the rest in the backward pass: less memory, a
    third more work."""

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared log-sum-exp of the logits, which keeps them from drifting."""
    mtp: LambdaSchedule = LambdaSchedule()
    """Weight of the MTP loss, if the model has MTP layers."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.001
    """Step of the router biases that balance the load of experts, if the model has them."""
    bias_until: Annotated[float, Field(ge=0, le=1)] = 14.3 / 14.8
    """Share of the run after which the router biases are frozen."""

    guard: GuardConfig = GuardConfig()
    """What counts as a loss that went wrong."""
    validate_every: Annotated[int, Field(ge=0)] = 250
    """Steps between validations, in addition to the first and the last; 0 for none."""
    validate_rows: Annotated[int, Field(ge=1)] = 64
    """Rows of held-out text in a validation."""
    save_every: IntervalText = "5m"
    """Time (2m) or steps (200-steps) between checkpoints, in addition to the last."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Number of newest checkpoints to keep; the best one is kept too."""
    log_every: Annotated[int, Field(ge=1)] = 1
    """Steps between two records of the run."""
    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Threads that read ahead; the batches are the same with any number."""
    deterministic: bool = True
    """Kernels that give the same numbers each time, which exact resuming needs; some are slower."""

    @property
    def batch_sizes(self) -> BatchSizeSchedule:
        """Return the rows of each step."""
        if self.global_batch_size is None:
            raise ConfigError(
                "global_batch_size: give a number; only fine-tuning chooses one itself."
            )
        first = self.global_batch_size if self.rampup_batch_size is None else self.rampup_batch_size
        return BatchSizeSchedule(self.global_batch_size, first, self.rampup_steps)

    def resolved_micro_batch_size(self, ranks: int) -> int:
        """Return the rows of a micro-batch."""
        first = self.batch_sizes.first
        if first % ranks:
            raise ConfigError(
                f"{first} rows cannot be shared by {ranks} processes: set global_batch_size (and "
                f"rampup_batch_size) to a multiple of {ranks}."
            )
        return first // ranks if self.micro_batch_size is None else self.micro_batch_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rampup_batch_size is None) != (self.rampup_steps == 0):
            raise ConfigError("rampup_batch_size and rampup_steps: give both or neither.")
        if self.validate_ema and not self.ema_decay:
            raise ConfigError("validate_ema has no effect without ema_decay.")
        if self.global_batch_size is None:
            if self.rampup_batch_size is not None:
                raise ConfigError(
                    "rampup_batch_size: give global_batch_size too, which it grows to."
                )
            return self
        if self.global_batch_size % self.batch_sizes.first:
            raise ConfigError(
                f"rampup_batch_size = {self.rampup_batch_size}: must divide global_batch_size = "
                f"{self.global_batch_size}."
            )
        if self.batch_sizes.first % (self.micro_batch_size or 1):
            raise ConfigError(
                f"micro_batch_size = {self.micro_batch_size}: must divide "
                f"{self.batch_sizes.first}, the rows of the smallest step."
            )
        return self


WITHOUT_EFFECT = frozenset(
    f"train.{name}"
    for name in (
        "budget",  # becomes the plan, which is compared on its own
        "device",  # what it became is compared
        "keep_last",
        "log_every",
        "save_every",
        "validate_every",
        "workers",
    )
)
"""Settings that may change without any number of the training changing."""
