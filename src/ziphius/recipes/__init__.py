"""Floor 6: whole runs as Python functions; a recipe calls every lower floor and prints nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ziphius.recipes import tour

RECIPES: dict[str, Callable[[Path | None], Iterator[tour.FamilyReport]]] = {"tour": tour.tour}
"""By the name a user types after `ziphius run`."""
