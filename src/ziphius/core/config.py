"""The frozen base of every config: options of commands, models, stages and runs."""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys; a field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class RenamedConfig(Config):
    """A config whose fields had other names in earlier versions.

    The error of an old name says the new one: in code, on a command line, and in the config.json of
    an old run. Not for what is read from JSON by pydantic itself, which a validator that sees all
    values makes strict about lists.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old name -> new name."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_names(cls, values: Any) -> Any:
        old = [name for name in cls.renamed if isinstance(values, Mapping) and name in values]
        if old:
            raise ValueError(f"{', '.join(f'{name} is now {cls.renamed[name]}' for name in old)}.")
        return values


def explain(error: ValidationError) -> str:
    """Say in one line what pydantic refused: field, reason and value of each error."""
    return "; ".join(map(_explain_one, error.errors(include_url=False)))


def _explain_one(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        # Raised by a validator of ours, which names field and value itself.
        return str(detail["ctx"]["error"])
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{field}: {detail['msg']}"
    return f"{field}: {detail['msg']}, not {reprlib.repr(detail['input'])}"
