"""What the main job would do, estimated before it does anything."""

from dataclasses import dataclass
from typing import Any

import torch

from ziphius.distill.student import dense_student
from ziphius.models.account import account
from ziphius.models.config import ModelConfig
from ziphius.recipes.family import stages_of
from ziphius.recipes.family_settings import FamilySettings
from ziphius.train.peak import matrix_peak

LIKELY_SHARE_OF_PEAK = 0.1
"""Of small models on a CPU, seen on the machines of docs/lab; an estimate, no promise."""
ROWS = 16


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan."""

    stage: str
    seconds: float | None
    """None where it is not a share of the budget."""
    memory_bytes: int
    flops: float | None

    @property
    def cells(self) -> dict[str, str]:
        """Return the line in words, by title."""
        return {
            "time": "-" if self.seconds is None else f"{self.seconds:.0f} s",
            "memory of the model": f"{self.memory_bytes / 2**20:.0f} MiB",
            "FLOPs": "-" if self.flops is None else f"{self.flops:.1e}",
        }

    @property
    def document(self) -> dict[str, Any]:
        """Return the line, JSON-serialisable."""
        return {
            "stage": self.stage,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "flops": self.flops,
        }


def plan(settings: FamilySettings) -> list[PlannedStage]:
    """Estimate every stage, and what is left for sampling and measuring."""
    teacher = settings.shape
    student = dense_student(teacher)
    peak = matrix_peak(torch.device("cpu"), torch.float32)
    rows = [
        _stage(settings, name, student if "lite" in name else teacher, peak)
        for name in stages_of(settings)
    ]
    left = settings.seconds * (1.0 - sum(settings.stages.shares.values()))
    measuring = account(teacher, batch=ROWS, context=settings.context).memory.serve
    return [*rows, PlannedStage("sampling and measuring", left, measuring, None)]


def _stage(settings: FamilySettings, name: str, shape: ModelConfig, peak: float) -> PlannedStage:
    memory = account(shape, batch=ROWS, context=settings.context).memory
    if name not in settings.stages.shares:
        return PlannedStage(name, None, memory.serve, None)
    seconds = settings.stages.shares[name] * settings.seconds
    return PlannedStage(name, seconds, memory.train, seconds * peak * LIKELY_SHARE_OF_PEAK)
