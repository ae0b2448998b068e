"""One run of a recipe's stages in a folder: what they share, and that each is done once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ziphius
from ziphius.models.cost import Flops, model_cost
from ziphius.models.weights import read_model_config
from ziphius.recipes.family_settings import FamilySettings
from ziphius.recipes.stages import (
    STAGE_FILE,
    StageResult,
    StoppedError,
    done_once,
    peak_memory_bytes,
    sum_of,
)
from ziphius.rl.settings import TaskChoice
from ziphius.rollout.config import RolloutConfig
from ziphius.tasks import Problem, Split, get_task
from ziphius.train.result import TrainResult
from ziphius.train.run import RunContext

SAVE_EVERY = "30s"
"""What a crash may cost, within a stage."""


@dataclass
class Job:
    """The settings, the folder, and the stages that are done, by name in their order."""

    settings: FamilySettings
    folder: Path
    names: tuple[str, ...]
    """Of all stages, in their order."""
    context: RunContext
    stages: dict[str, StageResult] = field(default_factory=dict)

    def do(self, name: str, stage: Callable[["Job", Path], StageResult], *inputs: str) -> None:
        """Do one stage, if every input made something and the folder has no result of these."""
        lacking = [
            one for one in inputs if one not in self.stages or not self.stages[one].is_usable
        ]
        if lacking:
            self._say(f"{name}: skipped, for {' and '.join(lacking)} left nothing to go on with")
            return
        number = self.names.index(name) + 1
        identity = self.settings.model_dump(mode="json") | {
            "version": ziphius.__version__,
            "inputs": {one: sum_of(self.stages[one].folder, STAGE_FILE) for one in inputs},
        }
        if self.context.console is not None:
            self.context.console.rule(f"{number}/{len(self.names)} {name}")
        place = self.folder / f"{number}-{name}"
        found = done_once(name, place, identity, lambda folder: stage(self, folder))
        self.stages[name] = found
        if not found.is_usable:
            self._say(found.note)

    def _say(self, text: str) -> None:
        if self.context.console is not None:
            self.context.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def checkpoint(self, stage: str) -> Path:
        """Return the folder of the model that a stage made."""
        found = self.stages[stage].checkpoint
        assert found is not None, f"the stage {stage} makes a model"
        return found

    @property
    def teacher(self) -> Path:
        """Return the model that teaches: where GRPO had no room, the fine-tuned one."""
        return self.checkpoint("grpo" if self.stages["grpo"].is_usable else "sft")

    def problems(self, split: Split, count: int, *, with_harder: bool) -> list[Problem]:
        """Return `count` problems of each trained task, of the next level too if asked."""
        harder = self.settings.harder if with_harder else ()
        return problems_of((*self.settings.trained, *harder), split, count, self.settings.seed)

    def rollout(self, num_generations: int) -> RolloutConfig:
        """Return how answers are sampled to be learned from; the model decides whether to think."""
        return RolloutConfig(
            num_generations=num_generations,
            max_new_tokens=self.settings.longest_answer,
            thinking=False,
        )

    def flops(self, model: Path) -> Flops:
        """Return what a token of a model costs."""
        return model_cost(read_model_config(model), context=self.settings.seq_len).flops


def problems_of(
    choices: Sequence[TaskChoice], split: Split, count: int, seed: int
) -> list[Problem]:
    """Return `count` problems of each choice, one choice after the other."""
    return [
        problem
        for choice in choices
        for problem in get_task(choice.name).problems(split, choice.level, count, seed)
    ]


def stage_of(
    name: str, result: TrainResult, *, flops: float, note: str, folder: Path | None = None
) -> StageResult:
    """Turn the end of a training run into a stage's result.

    Raises:
        StoppedError: a signal ended it early.
    """
    if result.stopped_by is not None:
        raise StoppedError(name, result.stopped_by)
    return StageResult(
        name,
        folder or result.folder,
        result.seconds,
        checkpoint=result.checkpoint,
        flops=flops,
        tokens=result.tokens,
        peak_memory_bytes=peak_memory_bytes(),
        note=note,
        figures=dict(result.validation),
        baselines=dict(result.baselines),
    )
