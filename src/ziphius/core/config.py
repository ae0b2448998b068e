"""The frozen base of every config: options of commands, models, stages and runs."""

import reprlib

from pydantic import BaseModel, ConfigDict, ValidationError
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
