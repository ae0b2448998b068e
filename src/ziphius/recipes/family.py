"""The main job: text -> base model -> fine-tuned -> GRPO -> dense student -> INT8, all measured.

The path of DeepSeek-R1 (arXiv 2501.12948) at a size that two CPU cores train in minutes. Every arm
answers the same held-out problems, and GRPO stands beside the controls that a sceptic would ask
for; `recipes/teacher.py` and `recipes/students.py` do the stages, `recipes/arms.py` measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ziphius.recipes import students, teacher
from ziphius.recipes.family_settings import FamilySettings
from ziphius.recipes.job import Job, problems_of
from ziphius.recipes.stages import StageResult
from ziphius.tasks import Problem, Split
from ziphius.train.run import RunContext

STAGES = (
    "pretrain",
    "sft",
    "grpo",
    "more-sft",
    "rft",
    "traces",
    "r1-lite",
    "r1-lite-logits",
    "r1-lite-alone",
    "r1-lite-int8",
)
IN_DISTRIBUTION = "in distribution"
HARDER = "one step harder"
UNTRAINED = "never trained on"
"""Slices: the levels that demonstrations show, the next ones, and families that no arm learned."""


@dataclass(frozen=True)
class FamilyRun:
    """The stages of a finished run, by name, in their order."""

    settings: FamilySettings
    folder: Path
    stages: Mapping[str, StageResult]

    @property
    def teacher(self) -> str:
        """Name the arm that taught the student: where GRPO had no room, the fine-tuned model."""
        return "GRPO" if self.stages["grpo"].is_usable else "SFT"

    def problems(self, split: Split, share: float = 1.0) -> dict[str, Sequence[Problem]]:
        """Return problems of a split that no arm was trained on, by slice."""
        settings = self.settings
        count = max(1, round(share * settings.lengths.measured))
        choices = {
            IN_DISTRIBUTION: settings.trained,
            HARDER: settings.harder,
            UNTRAINED: settings.untrained,
        }
        return {
            name: problems_of(chosen, split, count, settings.seed)
            for name, chosen in choices.items()
        }


def run_family(settings: FamilySettings, folder: Path, console: Console) -> FamilyRun:
    """Do all stages that are not done yet.

    Raises:
        StoppedError: a signal ended a stage early; everything is saved.
    """
    job = Job(settings, folder, stages_of(settings), RunContext(console=console))
    begin = teacher.pretrain if settings.base is None else teacher.fetch_base
    job.do(job.names[0], begin)
    job.do("sft", teacher.fine_tune, job.names[0])
    job.do("grpo", teacher.reinforce, "sft")
    job.do("more-sft", teacher.go_on_fine_tuning, "sft", "grpo")
    job.do("rft", teacher.reject_and_fine_tune, "sft", "grpo")
    job.do("traces", students.sample_traces, "grpo" if job.stages["grpo"].is_usable else "sft")
    job.do("r1-lite", students.teach_by_traces, "traces")
    job.do("r1-lite-logits", students.teach_by_logits, "traces")
    job.do("r1-lite-alone", students.teach_alone, "traces")
    job.do("r1-lite-int8", students.to_int8, "r1-lite")
    return FamilyRun(settings, folder, job.stages)


def stages_of(settings: FamilySettings) -> tuple[str, ...]:
    """Name the stages of a run, in their order."""
    return STAGES if settings.base is None else (teacher.BASE, *STAGES[1:])
