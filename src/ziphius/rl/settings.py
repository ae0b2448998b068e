"""What a run of reinforcement learning is made of; read without torch, as options are.

Defaults follow what worked on small models: a high constant rate for the size, no penalty against
a reference, a wider upper clip, and a mean over tokens (DAPO, arXiv 2503.14476).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config, RenamedConfig
from ziphius.core.errors import ConfigError
from ziphius.rollout.config import RolloutConfig
from ziphius.train.budget import IntervalText, parse_budget
from ziphius.train.config import TrainConfig
from ziphius.train.settings import RunSettings


class TaskChoice(Config):
    """Problems of one task and level."""

    name: str
    """Name of the task."""
    level: Annotated[int, Field(ge=1)] = 1
    """Difficulty; 1 is the easiest."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the choices."""


class GrpoConfig(RenamedConfig):
    """How completions become a gradient."""

    renamed: ClassVar[Mapping[str, str]] = {
        "clip_low": "epsilon",
        "clip_high": "epsilon_high",
        "kl_coef": "beta",
        "updates": "num_iterations",
    }
    rollout: RolloutConfig = RolloutConfig()
    """How completions are sampled."""
    advantage: Literal["std", "mean"] = "std"
    """What a reward is compared by: (r - mean) / std of its group, or r - mean."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.2
    """How far below 1 the probability ratio of a bad token may fall before it stops counting."""
    epsilon_high: Annotated[float, Field(gt=0)] = 0.28
    """How far above 1 the ratio of a good token may rise before it stops counting."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty against the initial model; 0 keeps no reference model."""
    format_bonus: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Added to the reward of 1 of a correct answer that also has a think block; a wrong answer gets
    nothing for its looks. 0 rewards correctness alone. It needs advantage = mean: divided by the
    standard deviation, 1.1 against 1.0 in a group that is all correct would weigh as much as right
    against wrong."""
    refill_rounds: Annotated[int, Field(ge=0, le=100)] = 0
    """How often the prompts of a step whose completions all got the same reward are replaced by
    others (dynamic sampling of DAPO, section 3.2): at most so many more rounds of sampling; 0 for
    none."""
    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on the same completions, before new ones are sampled."""
    replay_routes: bool = True
    """Send every token to the experts that it was sampled through, if the model has experts."""
    exact_logprobs: bool = False
    """Compute the trainer's forward pass with the sampler's native program, so that their
    log-probabilities are the same to the last bit; on a CPU alone. It costs a forward pass more
    (`make bench-rl` prints the price)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        rollout = self.rollout
        if rollout.num_generations < 2:
            raise ConfigError(
                "num_generations must be at least 2: completions are compared within a group."
            )
        if rollout.sampling.filters:
            raise ConfigError(
                f"{', '.join(sorted(rollout.sampling.filters))}: answers to learn from are drawn "
                "from the whole distribution, or probability ratios would be wrong. Leave it out."
            )
        if self.format_bonus and self.advantage == "std":
            raise ConfigError(
                f"format_bonus = {self.format_bonus}: with advantage = std a group that is all "
                "correct would be pulled towards the format as hard as others towards being "
                "correct, however small the bonus. Set advantage to mean, or format_bonus to 0."
            )
        return self


_NO_EFFECT = (
    "seq_len",
    "rampup_batch_size",
    "rampup_steps",
    "z_loss",
    "mtp",
    "bias_rate",
    "bias_until",
)


class GrpoTraining(TrainConfig):
    """How to train on sampled completions; a batch is counted in them."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Peak learning rate; 3e-5 suits 1M parameters, 1e-5 10M, 1e-6 from 100M on."""
    schedule: Literal["constant", "cosine", "v2", "v3"] = "constant"
    """How the rate falls: not at all, along a cosine to a tenth, or as V2 or V3 did."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """Steps over which the rate rises from 0; at most a tenth of the run."""
    global_batch_size: Annotated[int, Field(ge=1)] = 256
    """Completions of an optimizer step, a multiple of num_generations."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Completions of a forward pass, whole groups; by default all of a process's."""
    clip: Annotated[float, Field(ge=0)] = 0.2
    """Largest norm of the gradient; longer ones are scaled down to it. 0 leaves them alone."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.0
    """Router biases stand still: they would change what was sampled."""
    validate_every: Annotated[int, Field(ge=0)] = 25
    """Steps between measurements on held-out problems, beside the first and the last; 0 for none.
    """
    save_every: IntervalText = "5m"
    """Time (2m) or steps (200-steps) between checkpoints, beside the last."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        for name in _NO_EFFECT:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(f"{name} has no effect in reinforcement learning: leave it out.")
        if parse_budget(self.budget).unit == "tokens":
            raise ConfigError(
                f"budget = {self.budget}: how long answers will be is not known; give a time or "
                "steps."
            )
        return self


class GrpoSettings(RunSettings):
    """What a run of GRPO is made of."""

    model: Path | None = None
    """Model folder to train, with its tokenizer and chat format."""
    tasks: tuple[TaskChoice, ...] = ()
    """Problems to learn from."""
    pool: Annotated[int, Field(ge=1)] = 1_000
    """Different problems of each choice."""
    validation_problems: Annotated[int, Field(ge=1)] = 64
    """Held-out problems of each choice that are measured, one answer each."""
    headroom_problems: Annotated[int, Field(ge=0)] = 32
    """Problems that are answered 16 times before the start, to refuse a model that has nothing to
    gain; 0 for none."""
    grpo: GrpoConfig = GrpoConfig()
    """How completions become a gradient."""
    train: GrpoTraining = GrpoTraining()
    """How to train."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = self.grpo.rollout.num_generations
        rows = {
            "global_batch_size": self.train.global_batch_size,
            "micro_batch_size": self.train.micro_batch_size,
        }
        for name, count in rows.items():
            if count is not None and count % size:
                raise ConfigError(
                    f"train.{name} = {count}: must be a multiple of {size}, the completions "
                    f"of a problem (grpo.rollout.num_generations)."
                )
        if self.lora.rank:
            raise ConfigError(
                "lora.rank: adapters are not trained by GRPO yet; leave it out, or merge them."
            )
        return self

    @property
    def missing(self) -> list[str]:
        """Name model and tasks where they were not given."""
        model = ["MODEL, the folder of a model to train"] if self.model is None else []
        return model + ([] if self.tasks else ["--tasks, at least one kind of problems"])
