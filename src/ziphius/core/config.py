"""The frozen base of every config: options of commands, models, stages and runs."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys; a field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
