"""What the main job would do, worked out before it does anything."""

from dataclasses import dataclass
from typing import Any

from ziphius.distill.student import dense_student
from ziphius.models.config import ModelConfig
from ziphius.models.cost import model_cost
from ziphius.recipes.family import stages_of
from ziphius.recipes.family_settings import FamilySettings

ROWS = 16
"""Rows in memory that a stage is taken to hold."""
LIKELY_LENGTH = 0.6
"""Of the longest answer: what sampled answers are likely to have."""


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan."""

    stage: str
    length: str
    """In steps, or in what it follows from."""
    memory_bytes: int
    flops: float | None
    """None where it is not known before; of sampling, an estimate."""

    @property
    def cells(self) -> dict[str, str]:
        """Return the line in words, by title."""
        return {
            "length": self.length,
            "memory of the model": f"{self.memory_bytes / 2**20:.0f} MiB",
            "FLOPs": "-" if self.flops is None else f"{self.flops:.1e}",
        }

    @property
    def document(self) -> dict[str, Any]:
        """Return the line, JSON-serialisable."""
        return {
            "stage": self.stage,
            "length": self.length,
            "memory_bytes": self.memory_bytes,
            "flops": self.flops,
        }


def plan(settings: FamilySettings) -> list[PlannedStage]:
    """Work out every stage, in their order."""
    return [_stage(settings, name) for name in stages_of(settings)]


def _stage(settings: FamilySettings, name: str) -> PlannedStage:
    teacher, student = settings.shape, dense_student(settings.shape)
    shape = student if "lite" in name else teacher
    lengths = settings.lengths
    practised = _practised_flops(settings)
    text = {"pretrain": lengths.pretrain, "sft": lengths.sft}
    if name in text:
        flops = _supervised_flops(settings, shape, text[name])
        return PlannedStage(name, f"{text[name]:,} steps", _memory(settings, shape), flops)
    if name == "grpo":
        length = f"{lengths.grpo:,} steps of {settings.stages.grpo_global_batch_size} completions"
        return PlannedStage(name, length, _memory(settings, shape), practised)
    if name in ("more-sft", "rft"):
        return PlannedStage(name, "the FLOPs of grpo", _memory(settings, shape), practised)
    if name == "traces":
        count = lengths.traced * len((*settings.trained, *settings.harder))
        memory = model_cost(shape, batch=ROWS, context=settings.seq_len).memory.serve
        sampled = count * LIKELY_LENGTH * settings.longest_answer
        decode = model_cost(shape, context=settings.seq_len).flops.decode
        return PlannedStage(name, f"{count:,} answers", memory, sampled * decode)
    if name in ("r1-lite", "r1-lite-logits", "r1-lite-alone"):
        flops = _supervised_flops(settings, student, lengths.student)
        length = f"{lengths.student:,} steps"
        if name != "r1-lite":
            length = "the FLOPs of r1-lite"
        return PlannedStage(name, length, _memory(settings, student), flops)
    memory = model_cost(shape, batch=ROWS, context=settings.seq_len).memory.serve
    return PlannedStage(name, "-", memory, None)


def _memory(settings: FamilySettings, shape: ModelConfig) -> int:
    return model_cost(shape, batch=ROWS, context=settings.seq_len).memory.train


def _supervised_flops(settings: FamilySettings, shape: ModelConfig, steps: int) -> float:
    flops = model_cost(shape, context=settings.seq_len).flops
    tokens = steps * settings.stages.global_batch_size * settings.seq_len
    return float(tokens * (flops.training + flops.training_mtp))


def _practised_flops(settings: FamilySettings) -> float:
    flops = model_cost(settings.shape, context=settings.seq_len).flops
    completions = settings.lengths.grpo * settings.stages.grpo_global_batch_size
    tokens = completions * LIKELY_LENGTH * settings.longest_answer
    return float(tokens * (flops.decode + flops.training))
