"""How long a run is, and how often something happens: `10m`, `2h`, `200M-tokens`, `500-steps`."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from ziphius.core.errors import ConfigError

_TIME_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_COUNTED = re.compile(r"(\d+(?:\.\d+)?)([kKMBT]?)-?(steps|tokens)")


@dataclass(frozen=True)
class Budget:
    """An amount of time, tokens or steps."""

    unit: Literal["seconds", "tokens", "steps"]
    amount: float


def parse_budget(text: str) -> Budget:
    """Read a number with its unit: s, m, h, d, -tokens or -steps, the last two with K, M, B, T."""
    if match := _TIME.fullmatch(text.strip()):
        budget = Budget("seconds", float(match[1]) * _TIME_S[match[2]])
    elif match := _COUNTED.fullmatch(text.strip()):
        unit: Literal["tokens", "steps"] = "steps" if match[3] == "steps" else "tokens"
        budget = Budget(unit, float(match[1]) * _COUNT[match[2]])
    else:
        raise ConfigError(
            f"{text!r} is no budget: give a time (90s, 10m, 2h), a number of tokens (200M-tokens) "
            "or a number of steps (500-steps); k, M, B and T stand for thousands and so on."
        )
    if budget.amount <= 0 or (budget.unit == "steps" and budget.amount != int(budget.amount)):
        raise ConfigError(f"{text!r}: must be above 0, and steps a whole number.")
    return budget


def _checked(text: str) -> str:
    parse_budget(text)
    return text


def _checked_interval(text: str) -> str:
    if parse_budget(text).unit == "tokens":
        raise ConfigError(f"{text!r}: give a time (2m) or a number of steps (200-steps).")
    return text


BudgetText = Annotated[str, AfterValidator(_checked)]
"""A budget as a user writes it."""

IntervalText = Annotated[str, AfterValidator(_checked_interval)]
"""A budget of time or steps as a user writes it."""
