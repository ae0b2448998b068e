"""What a run of rejection-sampled fine-tuning is made of; read without torch, as options are."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.errors import ConfigError
from ziphius.rl.settings import TaskChoice
from ziphius.rollout.config import RolloutConfig
from ziphius.train.budget import parse_budget
from ziphius.train.config import GLOBAL_BATCH_SIZE
from ziphius.train.settings import RunSettings, SftTraining

__all__ = ["RftSettings"]


class RftSettings(RunSettings):
    """What a run of rejection-sampled fine-tuning is made of."""

    model: Path | None = None
    """Model folder to train, with its tokenizer and chat format."""
    tasks: tuple[TaskChoice, ...] = ()
    """Problems to answer and to learn from."""
    pool: Annotated[int, Field(ge=1)] = 1_000
    """Different problems of each choice."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """How often answers are sampled from the model as it is then, and learned from."""
    sampled_tokens: Annotated[int, Field(ge=1)] = 1_000_000
    """Tokens of answers that are sampled over all rounds; a round ends with the batch of problems
    that reaches its share, and has at least one."""
    answers_kept: Annotated[int, Field(ge=1)] = 4
    """Correct answers, all different, that are learned from one problem and round, drawn by lot."""
    demonstrations: tuple[Path, ...] = ()
    """Files of conversations that are learned again beside the answers, in every round."""
    keeps_rounds: bool = True
    """Learn the answers of earlier rounds again in each round."""
    train: SftTraining = SftTraining(budget="1M-tokens", global_batch_size=GLOBAL_BATCH_SIZE)
    """How each round trains; the budget, in steps or tokens, is of all rounds together, of which
    each has at least one step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if parse_budget(self.train.budget).unit == "seconds":
            raise ConfigError(f"train.budget = {self.train.budget}: give tokens or steps.")
        if self.train.global_batch_size is None:
            raise ConfigError(
                "train.global_batch_size: give it; the budget is shared out in steps."
            )
        if self.train.rampup_steps:
            raise ConfigError("train.rampup_steps: every round would begin it anew; leave it out.")
        if self.lora.rank:
            raise ConfigError("lora.rank: adapters are not trained round by round yet.")
        return self

    @property
    def missing(self) -> list[str]:
        """Name model and tasks where they were not given."""
        model = ["MODEL, the folder of a model to train"] if self.model is None else []
        return model + ([] if self.tasks else ["--tasks, at least one kind of problems"])
