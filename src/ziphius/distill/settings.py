"""What a run of distillation is made of; options are read from here."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.errors import ConfigError
from ziphius.distill.logit_config import LogitConfig
from ziphius.train.settings import SftSettings

Kind = Literal["traces", "logits"]


class DistillSettings(SftSettings):
    """How a student is taught; `data` are conversations, such as a teacher's verified answers."""

    kind: Kind = "traces"
    """What is learned: the conversations alone, or the teacher's probabilities on them too."""
    model: Path | None = None
    """Folder of a student to go on from; by default a new dense one, as `student_share` says."""
    teacher: Path | None = None
    """Folder of the teacher: its probabilities are learned, and a new student has its tokenizer."""
    student_share: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """Largest size of a new student, as a share of the teacher's parameters."""
    logits: LogitConfig = LogitConfig()
    """How probabilities are learned."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        default = type(self).model_fields["student_share"].default
        if self.model is not None and self.student_share != default:
            raise ConfigError("student_share has no effect with model, a student that exists.")
        if self.kind == "traces":
            if self.model is not None and self.teacher is not None:
                raise ConfigError("teacher has no effect: traces of it are learned by model.")
            if self.logits != LogitConfig():
                raise ConfigError("logits has no effect on kind traces.")
        elif self.lora.rank:
            raise ConfigError("lora.rank has no effect on kind logits: whole students are taught.")
        return self

    @property
    def missing(self) -> list[str]:
        """Name what is learned from and the teacher where they were not given."""
        needs_teacher = self.teacher is None and (self.kind == "logits" or self.model is None)
        teacher = ["--teacher, the folder of a teacher"] if needs_teacher else []
        return teacher + ([] if self.data else ["--data, at least one file of conversations"])
