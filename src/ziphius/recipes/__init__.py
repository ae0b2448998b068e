"""Whole runs as Python functions; a recipe calls down to every floor."""

from collections.abc import Callable
from typing import Any

from ziphius.recipes import family, tour

RECIPES: dict[str, Callable[..., Any]] = {
    "family": family.run_family,
    "smollm": family.run_family,  # with the settings of smollm.py
    "tour": tour.tour,
}
"""By the name a user types after `ziphius run`."""
