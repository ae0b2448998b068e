"""A whole run of distillation as one function: a student, new or given, taught as fine-tuning is.

Traces are fine-tuning on a teacher's verified answers; logits are the same run with another stage.
"""

from functools import partial
from pathlib import Path

import torch

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.dist.world import local_device
from ziphius.distill.logits import LogitDistillation
from ziphius.distill.settings import DistillSettings
from ziphius.distill.student import dense_student, new_student
from ziphius.models.weights import load, read_model_config
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.train.finetuning import NewModel, run_sft
from ziphius.train.run import PLAIN, Finished, RunContext


def run_distillation(
    settings: DistillSettings, folder: Path, context: RunContext = PLAIN
) -> Finished:
    """Teach a student, or go on where the folder has a checkpoint.

    Without `settings.model` the student is a new dense one with the teacher's tokenizer.
    """
    if settings.missing:
        raise ConfigError(f"Give {' and '.join(settings.missing)}.")
    new = _new_student(settings) if settings.model is None else None
    if settings.kind == "traces":
        return run_sft(settings, folder, context, new=new)
    assert settings.teacher is not None
    if settings.model is not None:
        _refuse_other_tokens(settings.teacher, settings.model)
    device = local_device(resolve_device(settings.train.device))
    teacher = load(settings.teacher, dtype=torch.float32, device=device)
    stage = partial(LogitDistillation, teacher=teacher, logits=settings.logits)
    return run_sft(settings, folder, context, stage=stage, new=new)


def _new_student(settings: DistillSettings) -> NewModel:
    assert settings.teacher is not None
    config = dense_student(read_model_config(settings.teacher), share=settings.student_share)
    build = partial(new_student, config, seed=settings.train.seed)
    return NewModel(build, speaks_as=settings.teacher)


def _refuse_other_tokens(teacher: Path, student: Path) -> None:
    """Raise unless both models mean the same text by the same numbers."""
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    if _tokens(ours) != _tokens(theirs):
        raise ConfigError(
            f"{student} and {teacher} have different tokenizers ({ours.vocab_size} and "
            f"{theirs.vocab_size} tokens): logits can only be compared over one vocabulary. Make "
            "the student with the teacher's tokenizer, or distil traces."
        )


def _tokens(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.id_to_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
