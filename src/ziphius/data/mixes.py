"""Mixes: which share of the training tokens comes from which domain.

V2's shares are those of the project's own specification (60 general, 30 books and reference, 10
code); a third of its general text is Chinese. R1's base adds 30 % mathematics. Coder's follow
DeepSeek-Coder (arXiv 2401.14196), section 2: nearly all code, little language.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

MATHEMATICS = "mathematics"
"""Domain of exercises that are made as they are read."""
DOMAINS = ("general", "chinese", "books", "code", MATHEMATICS)
OWN = "own"
"""Domain of a user's own data."""


class Mix(Config):
    """Shares of the training tokens by domain, and how code is written."""

    weights: dict[str, Annotated[float, Field(gt=0.0)]]
    """Share of each domain; scaled to a sum of 1."""
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the code documents that are filled in the middle."""

    @model_validator(mode="after")
    def _known_domains(self) -> Self:
        if not self.weights:
            raise ValueError("weights: a mix needs at least one domain")
        for name in self.weights:
            if name not in (*DOMAINS, OWN):
                raise ValueError(f"weights: no domain {name!r}; there are {', '.join(DOMAINS)}")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Give the weights with a sum of 1."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}

    def with_own(self, share: float) -> "Mix":
        """Return a mix in which a user's own data have `share` and the rest keeps its ratios."""
        weights = {name: old * (1.0 - share) for name, old in self.shares.items() if share < 1.0}
        return self.model_copy(update={"weights": {OWN: share, **weights}})


_V2 = {"general": 40.0, "chinese": 20.0, "books": 30.0, "code": 10.0}

MIXES: dict[str, Mix] = {
    "v2": Mix(weights=_V2, fim_rate=0.1),
    "r1": Mix(
        weights={**{name: 0.7 * weight for name, weight in _V2.items()}, "mathematics": 30.0},
        fim_rate=0.1,
    ),
    "coder": Mix(weights={"code": 85.0, "general": 10.0, "chinese": 5.0}, fim_rate=0.5),
}


def get_mix(name: str) -> Mix:
    """Look up a mix, or name those there are."""
    if name not in MIXES:
        raise ConfigError(f"There is no mix {name!r}. Known: {', '.join(MIXES)}.")
    return MIXES[name]
