from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError, model_validator

from ziphius.core.config import Config, explain


class Inner(Config):
    rate: Annotated[float, Field(gt=0)] = 1.0
    """How fast."""


class Outer(Config):
    size: int
    """How large."""
    inner: Inner = Inner()
    """How it goes."""

    @model_validator(mode="after")
    def _even(self) -> "Outer":
        if self.size % 2:
            raise ValueError(f"size must be even, not {self.size}")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "size: Field required"),
        ({"size": 3}, "size must be even, not 3"),
        ({"size": 2, "sise": 1}, "sise: Extra inputs are not permitted, not 1"),
        (
            {"size": 2, "inner": {"rate": -1}},
            "inner.rate: Input should be greater than 0, not -1",
        ),
        (
            {"size": 2, "inner": {"rate": float("nan")}},
            "inner.rate: Input should be a finite number, not nan",
        ),
    ],
)
def test_explain_names_field_reason_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Outer(**values)
    assert explain(raised.value) == message


def test_explain_shortens_long_values() -> None:
    with pytest.raises(ValidationError) as raised:
        Outer(size="9" * 10_000 + "x")
    assert len(explain(raised.value)) < 200


def test_configs_are_frozen_and_their_docstrings_are_help() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rate = 2.0
    assert Inner.model_fields["rate"].description == "How fast."
