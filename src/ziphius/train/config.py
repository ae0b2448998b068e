"""`TrainConfig`: how any stage is trained; what it is trained on is the stage's own business.

Defaults follow DeepSeek-V3 (arXiv 2412.19437, section 4.2) where a small run allows it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.train.budget import BudgetText, IntervalText
from ziphius.train.guard import GuardConfig
from ziphius.train.optimizer_config import OptimizerConfig
from ziphius.train.schedules import LambdaSchedule, RowSchedule

Dtype = Literal["auto", "float32", "bfloat16"]
BATCH_ROWS = 8


class TrainConfig(Config):
    """How long, how fast, in which batches and in which numbers a stage is trained."""

    budget: BudgetText = "10m"
    """How long: a time (90s, 10m, 2h), tokens (200M-tokens) or steps (500-steps). A time becomes
    a number of steps, found out anew after every tenth of it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the first weights and the order of the data."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "auto"
    """Numbers of products; bfloat16 is autocast beside float32 weights. auto takes it on
    accelerators, and on a CPU with units for it where the model is stored in it."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate; by default 3e-3 for a new model of up to two million parameters, less
    for larger ones (6e-4 at 125M), and a tenth of it for one that is trained already."""
    schedule: Literal["constant", "cosine", "v2", "v3"] = "cosine"
    """How the rate falls: not at all, along a cosine to a tenth, or as V2 or V3 did."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the rate rises from 0; a run of fewer than ten times as many rises over a
    tenth of its own."""

    context: Annotated[int, Field(ge=2)] = 256
    """Tokens of a row."""
    batch_rows: Annotated[int, Field(ge=1)] | None = BATCH_ROWS
    """Rows of an optimizer step, over all micro-batches and processes."""
    micro_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in memory at a time; by default all of a process's rows of the smallest step."""
    ramp_from_rows: Annotated[int, Field(ge=1)] | None = None
    """Start with this many rows a step, a divisor of batch_rows, and grow."""
    ramp_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the batch grows to batch_rows."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """What turns gradients into steps."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it. 0 leaves them alone."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the running average of the weights; 0 keeps none."""
    validate_ema: bool = False
    """Measure the averaged weights instead of the trained ones."""
    recompute: bool = False
    """Keep only the input of each layer and compute the rest again in the backward pass: less
    memory, a third more work."""

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared log-sum-exp of the logits, which keeps them from drifting."""
    mtp: LambdaSchedule = LambdaSchedule()
    """Weight of the loss of the layers that predict further tokens, if the model has them."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.001
    """Step of the router biases that balance the load of experts, if the model has them."""
    bias_until: Annotated[float, Field(ge=0, le=1)] = 14.3 / 14.8
    """Share of the run after which the router biases stand still."""

    guard: GuardConfig = GuardConfig()
    """What counts as a loss that went wrong."""
    validate_every: Annotated[int, Field(ge=0)] = 250
    """Steps between measurements on held-out text, beside the first and the last; 0 for none."""
    validate_rows: Annotated[int, Field(ge=1)] = 64
    """Rows of held-out text that are measured."""
    save_every: IntervalText = "5m"
    """Time (2m) or steps (200-steps) between checkpoints, beside the last."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept; the best is kept too."""
    log_every: Annotated[int, Field(ge=1)] = 1
    """Steps between two records of the run."""
    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Threads that read ahead; the batches are the same with any number."""
    deterministic: bool = True
    """Kernels that give the same numbers each time, which exact resuming needs; some are slower."""

    @property
    def rows(self) -> RowSchedule:
        """Return the rows of each step."""
        if self.batch_rows is None:
            raise ConfigError("batch_rows: give a number; only fine-tuning chooses one itself.")
        first = self.batch_rows if self.ramp_from_rows is None else self.ramp_from_rows
        return RowSchedule(self.batch_rows, first, self.ramp_steps)

    def rows_at_once(self, ranks: int) -> int:
        """Return the rows of a micro-batch."""
        first = self.rows.first
        if first % ranks:
            raise ConfigError(
                f"{first} rows cannot be shared by {ranks} processes: set batch_rows (and "
                f"ramp_from_rows) to a multiple of {ranks}."
            )
        return first // ranks if self.micro_rows is None else self.micro_rows

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.ramp_from_rows is None) != (self.ramp_steps == 0):
            raise ConfigError("ramp_from_rows and ramp_steps: give both or neither.")
        if self.validate_ema and not self.ema_decay:
            raise ConfigError("validate_ema has no effect without ema_decay.")
        if self.batch_rows is None:
            if self.ramp_from_rows is not None:
                raise ConfigError("ramp_from_rows: give batch_rows too, which it grows to.")
            return self
        if self.batch_rows % self.rows.first:
            raise ConfigError(
                f"ramp_from_rows = {self.ramp_from_rows}: must divide batch_rows = "
                f"{self.batch_rows}."
            )
        if self.rows.first % (self.micro_rows or 1):
            raise ConfigError(
                f"micro_rows = {self.micro_rows}: must divide {self.rows.first}, the rows of the "
                "smallest step."
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
