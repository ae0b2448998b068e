"""What the main job is made of: its shapes, problems, and how its time is shared out.

The model is of V3's make (latent attention, experts with the auxiliary-loss-free gate, one further
token), small enough for two cores. Its vocabulary is DeepSeek's cut to 429 tokens, the largest cut
in which every digit is a token of its own: sums are then learned column by column.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.data.config import DataConfig
from ziphius.models.config import ModelConfig
from ziphius.models.presets import derive, get_preset
from ziphius.rl.settings import TaskChoice
from ziphius.tasks.demonstrations import DemonstrationConfig
from ziphius.train.budget import BudgetText, parse_budget
from ziphius.train.config import Dtype
from ziphius.train.optimizer_config import OptimizerConfig

VOCABULARY = 429
SHARES: Mapping[str, float] = {
    "pretrain": 0.13,
    "sft": 0.25,
    "grpo": 0.155,
    "control": 0.155,
    "r1-lite": 0.12,
    "r1-lite-logits": 0.04,
}
"""Of the budget, for the stages that train; the rest is for sampling, measuring and set-up."""


def family_shape() -> ModelConfig:
    """Return the shape of the model that the main job trains."""
    return derive(
        get_preset("v3-1m"),
        vocab_size=VOCABULARY,
        num_hidden_layers=4,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=128,
        intermediate_size=384,
        max_position_embeddings=512,
    )


class StageSettings(Config):
    """How the stages train."""

    optimizer: OptimizerConfig = OptimizerConfig(name="muon")
    """Of all stages but GRPO, which has AdamW."""
    dtype: Dtype = "auto"
    """Numbers that products are taken in."""
    sft_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Highest learning rate of fine-tuning."""
    control_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """Highest learning rate of the control, which goes on where fine-tuning ended."""
    grpo_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of reinforcement learning."""
    student_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Highest learning rate of the student."""
    rows: Annotated[int, Field(ge=1)] = 8
    """Rows of a step of the supervised stages."""
    answers: Annotated[int, Field(ge=16)] = 512
    """Answers of a step of reinforcement learning, 16 to a problem."""
    answers_at_once: Annotated[int, Field(ge=16)] | None = None
    """Of those, in memory at a time; by default all."""
    shares: Mapping[str, Annotated[float, Field(gt=0)]] = SHARES
    """Of the budget, by stage."""


class FamilySettings(Config):
    """What the main job needs to know."""

    budget: BudgetText = "15m"
    """Time for everything: 2m to try it out, 15m for a result, 2h for a better one."""
    recipe: str = "family"
    """Name of the recipe, for the result."""
    base: str | None = None
    """Asset of a model to begin with; None pretrains one, with DeepSeek's vocabulary cut to its
    size."""
    shape: ModelConfig = Field(default_factory=family_shape)
    """Of the model that is trained."""
    chat_format: str = "deepseek-r1"
    """That the model learns to speak; one in which it decides itself whether to think."""
    stages: StageSettings = StageSettings()
    """How the stages train."""
    context: Annotated[int, Field(ge=64)] = 256
    """Tokens of a row, of text and of conversations."""
    data: DataConfig = DataConfig(mix="r1", domain_megabytes=4.0)
    """Text of the base model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides weights, data, problems and samples."""
    trained: tuple[TaskChoice, ...] = (
        TaskChoice(name="letter_counting", level=1),
        TaskChoice(name="spell_backward", level=1),
        TaskChoice(name="chain_sum", level=1),
    )
    """Problems that fine-tuning shows; reinforcement learning adds the next level of each."""
    untrained: tuple[TaskChoice, ...] = (
        TaskChoice(name="gcd", level=1),
        TaskChoice(name="simple_equations", level=1),
    )
    """Families that nothing is trained on."""
    demonstrations: DemonstrationConfig = DemonstrationConfig()
    """How careful the demonstrations are."""
    problems: Annotated[int, Field(ge=8)] = 4_000
    """Different problems of each task and level to learn from, or as many as there are."""
    measured: Annotated[int, Field(ge=4)] = 40
    """Problems of each task and level that every model is measured on."""
    samples: Annotated[int, Field(ge=8)] = 8
    """Answers to each of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if parse_budget(self.budget).unit != "seconds":
            raise ConfigError(f"budget = {self.budget}: give a time, such as 2m, 15m or 2h.")
        if both := {c.name for c in self.trained} & {c.name for c in self.untrained}:
            raise ConfigError(f"untrained: {', '.join(sorted(both))} is trained on.")
        return self

    @property
    def seconds(self) -> float:
        """Return the budget in seconds."""
        return parse_budget(self.budget).amount

    def budget_of(self, stage: str) -> str:
        """Return the share of a stage that trains, as a budget."""
        return f"{self.stages.shares[stage] * self.seconds:.1f}s"

    @property
    def harder(self) -> tuple[TaskChoice, ...]:
        """Return the next level of what fine-tuning shows, asked half as often."""
        return tuple(
            choice.model_copy(update={"level": choice.level + 1, "share": choice.share / 2})
            for choice in self.trained
        )
