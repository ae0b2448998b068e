"""What the main job is made of: its shapes, its problems, how its stages train and how long.

The model is of V3's make (latent attention, experts with the auxiliary-loss-free gate, one MTP
layer), small enough for two cores. Its vocabulary is DeepSeek's cut to 429 tokens, the largest cut
in which every digit is a token of its own.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from ziphius.core.config import RenamedConfig
from ziphius.core.errors import ConfigError
from ziphius.data.config import DataConfig
from ziphius.models.config import ModelConfig
from ziphius.models.presets import derive, get_preset
from ziphius.recipes.lengths import Reference, StageLengths
from ziphius.rl.settings import TaskChoice
from ziphius.tasks.demonstrations import DemonstrationConfig
from ziphius.train.config import Dtype
from ziphius.train.optimizer_config import OptimizerConfig

VOCABULARY = 429
WITHOUT = ("equation", "greatest_divisor", "least_multiple", "simplification")
"""Exercises that the text leaves out: they would work what is called never trained on."""

REFERENCE = Reference(StageLengths(), seconds=1_200.0, training_tokens_per_s=11_100.0)
"""What a run takes on one core of an AMD EPYC (docs/lab/2026-11-27-five-seeds.md)."""


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


class StageSettings(RenamedConfig):
    """How the stages train."""

    renamed: ClassVar[Mapping[str, str]] = {
        "rows": "global_batch_size",
        "group_size": "num_generations",
        "answers": "grpo_global_batch_size",
        "answers_at_once": "grpo_micro_batch_size",
    }
    optimizer: OptimizerConfig = OptimizerConfig(name="muon")
    """Of the supervised stages."""
    dtype: Dtype = "auto"
    """Numbers that products are taken in."""
    sft_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Peak learning rate of fine-tuning."""
    more_sft_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak learning rate of the control that goes on where fine-tuning ended."""
    rft_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak learning rate of a round of rejection-sampled fine-tuning."""
    rft_rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds of it."""
    grpo_optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    """Of reinforcement learning."""
    grpo_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of reinforcement learning; it falls along a cosine to a tenth."""
    student_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Peak learning rate of the students."""
    global_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows of a step of the supervised stages."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions of a problem, of reinforcement learning and of its control."""
    grpo_global_batch_size: Annotated[int, Field(ge=2)] = 512
    """Completions of a step of reinforcement learning."""
    grpo_micro_batch_size: Annotated[int, Field(ge=2)] | None = None
    """Of those, in memory at a time; by default all."""


class FamilySettings(RenamedConfig):
    """What the main job needs to know."""

    renamed: ClassVar[Mapping[str, str]] = {"context": "seq_len"}
    recipe: str = "family"
    """Name of the recipe, for the result."""
    base: str | None = None
    """Asset of a model to begin with; None pretrains one, with DeepSeek's vocabulary cut to its
    size."""
    shape: ModelConfig = Field(default_factory=family_shape)
    """Of the model that is trained."""
    chat_format: str = "deepseek-r1"
    """That the model learns to speak; one in which it decides itself whether to think."""
    lengths: StageLengths = StageLengths()
    """Steps and problems of the stages."""
    stages: StageSettings = StageSettings()
    """How they train."""
    seq_len: Annotated[int, Field(ge=64)] = 256
    """Tokens of a row, of text and of conversations."""
    longest_answer: Annotated[int, Field(ge=8)] = 64
    """Tokens of a completion; a longer one is cut off, and wrong."""
    data: DataConfig = DataConfig(mix="r1", domain_megabytes=4.0, mathematics_without=WITHOUT)
    """Text of the base model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides weights, data, problems, demonstrations and samples."""
    trained: tuple[TaskChoice, ...] = (
        TaskChoice(name="subset_sum", level=1),
        TaskChoice(name="coin_change", level=1),
    )
    """Problems that demonstrations show; the next level of each has none, and is practised by the
    arms that have a verifier."""
    untrained: tuple[TaskChoice, ...] = (
        TaskChoice(name="countdown", level=1),
        TaskChoice(name="gcd", level=1),
    )
    """Families that nothing is trained on."""
    demonstrations: DemonstrationConfig = DemonstrationConfig()
    """What the demonstrations show."""
    problems: Annotated[int, Field(ge=8)] = 3_000
    """Different problems of each task and level to learn from."""
    samples: Annotated[int, Field(ge=8)] = 8
    """Answers to each measured problem at temperature 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := {c.name for c in self.trained} & {c.name for c in self.untrained}:
            raise ConfigError(f"untrained: {', '.join(sorted(both))} is trained on.")
        if self.stages.grpo_global_batch_size % self.stages.num_generations:
            raise ConfigError(
                f"stages.grpo_global_batch_size = {self.stages.grpo_global_batch_size}: must be a "
                f"multiple of stages.num_generations = {self.stages.num_generations}."
            )
        return self

    @property
    def harder(self) -> tuple[TaskChoice, ...]:
        """Return the next level of what demonstrations show."""
        return tuple(
            choice.model_copy(update={"level": choice.level + 1}) for choice in self.trained
        )
