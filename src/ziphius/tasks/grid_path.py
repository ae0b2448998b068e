"""A way through a small grid with walls, found by walking and turning back."""

import itertools
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from ziphius.tasks.search import SearchTask

Cell = tuple[int, int]

SIZE = 5
MOST_CELLS = 24
"""Of a demonstration, those that were turned back from included."""
_FORM = re.compile(r"[a-y](-[a-y]){1,24}")
_LEVELS = {1: (2, 3, 6), 2: (4, 7, 6)}
"""Nearest and furthest goal, in steps without walls, and walls, by level."""


class GridPath(SearchTask):
    """`go a to m not c g w`; an answer is the cells of a way, `a-b-...-m`.

    The cells are the letters a to y, five in a row."""

    name = "grid_path"
    levels = tuple(_LEVELS)

    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        """Draw a start, a goal and walls; thrown away where the walls leave no way."""
        nearest, furthest, walls = _LEVELS[level]
        cells = [(x, y) for x in range(SIZE) for y in range(SIZE)]
        start, goal, *blocked = random.sample(cells, 2 + walls)
        if not nearest <= abs(start[0] - goal[0]) + abs(start[1] - goal[1]) <= furthest:
            return None
        facts = {"start": start, "goal": goal, "walls": sorted(blocked)}
        return facts if _is_reachable(facts) else None

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show start, goal and walls."""
        walls = " ".join(map(_name, facts["walls"]))
        return f"go {_name(facts['start'])} to {_name(facts['goal'])} not {walls}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Name the grid as the first of all that are the same turned, mirrored or walked back."""
        views = []
        for view in itertools.product((False, True), repeat=3):
            ends = [_seen(facts["start"], view), _seen(facts["goal"], view)]
            walls = sorted(_seen(cell, view) for cell in facts["walls"])
            views += [(ends, walls), (ends[::-1], walls)]
        return str(min(views))

    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        """Walk to free cells not seen before, in random order; turn back where there is none."""
        walls = set(map(tuple, facts["walls"]))
        goal, way = tuple(facts["goal"]), [tuple(facts["start"])]
        trace, seen = [way[0]], {way[0]}
        while way[-1] != goal:
            free = [c for c in _neighbours(way[-1]) if c not in walls and c not in seen]
            if free:
                way.append(random.choice(free))
                seen.add(way[-1])
            else:
                way.pop()
            trace.append(way[-1])
            if len(trace) > MOST_CELLS:
                return None
        return "-".join(map(_name, trace)), "-".join(map(_name, way))

    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        """Walk the way: neighbours only, no wall, from start to goal."""
        if not _FORM.fullmatch(answer):
            return False
        way = [divmod(ord(name) - ord("a"), SIZE) for name in answer.split("-")]
        walls = set(map(tuple, facts["walls"]))
        ends = (tuple(facts["start"]), tuple(facts["goal"]))
        steps = itertools.pairwise(way)
        return (way[0], way[-1]) == ends and all(
            step in _neighbours(cell) and step not in walls for cell, step in steps
        )


def _seen(cell: Cell, view: Sequence[bool]) -> Cell:
    """Return where a cell is in a grid that is mirrored in x, mirrored in y, and turned over."""
    x, y = (SIZE - 1 - n if mirrored else n for n, mirrored in zip(cell, view[:2], strict=True))
    return (y, x) if view[2] else (x, y)


def _neighbours(cell: Cell) -> list[Cell]:
    x, y = cell
    near = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    return [(a, b) for a, b in near if 0 <= a < SIZE and 0 <= b < SIZE]


def _is_reachable(facts: Mapping[str, Any]) -> bool:
    walls, seen, left = set(facts["walls"]), {facts["start"]}, [facts["start"]]
    while left:
        fresh = [c for c in _neighbours(left.pop()) if c not in walls and c not in seen]
        seen.update(fresh)
        left += fresh
    return facts["goal"] in seen


def _name(cell: Cell) -> str:
    return chr(ord("a") + cell[0] * SIZE + cell[1])
