"""Tables of the page that compare arms: every arm in every way, and one arm less each control."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.sections import BEST_WAY, AskedRow, Difference
from ziphius.recipes.report.text import gap, quoted, standing

EXPLAINED: Mapping[str, str] = {
    "as trained": "the model decides by itself whether to think, temperature 1",
    "think first": "the think block is opened for it, temperature 1",
    "cooler": "the think block is opened for it, temperature 0.4",
    "greedy": "the think block is opened for it, always the likeliest token",
    "maj@8": "of 8 answers the most frequent one, which costs eight times as much",
    "pass@8": "whether one of 8 answers is right, which takes a verifier to know",
}
"""What the usual ways of asking mean, by name."""
Name = TypeVar("Name")
BEST_ROW = "best way of each"


@dataclass(frozen=True)
class Share:
    """One figure of an arm."""

    estimate: Estimate | None
    is_best: bool
    """Whether it was asked in the arm's best way."""


@dataclass(frozen=True)
class AskedTable:
    """Arms and ways of asking, slice by slice."""

    ways: tuple[str, ...]
    explained: tuple[tuple[str, str], ...]
    slices: tuple[tuple[str, tuple[tuple[str, tuple[Share, ...]], ...]], ...]
    """Of each slice its name and a row of every arm: the arm's name, and one share a way."""


@dataclass(frozen=True)
class Gap:
    """One difference as it is written."""

    value: str
    interval: str
    class_: str


@dataclass(frozen=True)
class Column:
    """What an arm is compared with."""

    name: str
    is_best_control: bool
    best_way: str
    """How it is asked in the row of best ways; empty if that is not known."""


@dataclass(frozen=True)
class DifferenceTable:
    """One arm less each of the others, slice by slice and way by way."""

    ours: str
    best_way: str
    columns: tuple[Column, ...]
    slices: tuple[tuple[str, tuple[tuple[str, bool, tuple[Gap | None, ...]], ...]], ...]
    """Of each slice its name and a row of every way: the way, whether the run is about it, and
    one gap a column."""


def asked_table(rows: Sequence[AskedRow]) -> AskedTable:
    """Lay out every arm in every way."""
    ways, arms = _names(row.way for row in rows), _names(row.arm for row in rows)
    slices = _names(name for row in rows for name in row.figures)
    known = {(row.arm, row.way): row for row in rows}

    def share(arm: str, way: str, part: str) -> Share:
        row = known.get((arm, way))
        return Share(row.figures.get(part) if row else None, row is not None and row.is_best)

    return AskedTable(
        ways,
        tuple((way, EXPLAINED[way]) for way in ways if way in EXPLAINED),
        tuple(
            (part, tuple((arm, tuple(share(arm, way, part) for way in ways)) for arm in arms))
            for part in slices
        ),
    )


def difference_tables(differences: Sequence[Difference]) -> list[DifferenceTable]:
    """Lay out the differences of every arm to the others, what the run is about first."""
    return [
        _difference_table(ours, [one for one in differences if one.ours == ours])
        for ours in _names(one.ours for one in in_order(differences))
    ]


def in_order(differences: Sequence[Difference]) -> list[Difference]:
    """Put the goals first, and with them their arms, their slice and their way."""
    goals = [one for one in differences if one.is_goal]
    first = [*goals, *differences]
    pairs = _names((one.ours, one.theirs) for one in first)
    slices, ways = _names(one.slice for one in first), _names(one.way for one in first)
    return sorted(
        differences,
        key=lambda one: (
            pairs.index((one.ours, one.theirs)),
            slices.index(one.slice),
            ways.index(one.way),
        ),
    )


def way_name(way: str) -> str:
    """Name a way in a table or a picture."""
    return BEST_ROW if way == BEST_WAY else way


def _difference_table(ours: str, differences: Sequence[Difference]) -> DifferenceTable:
    ordered = in_order(differences)
    names, ways = _names(one.theirs for one in ordered), _names(one.way for one in ordered)
    known = {(one.theirs, one.slice, one.way): one for one in ordered}

    def row(part: str, way: str) -> tuple[str, bool, tuple[Gap | None, ...]]:
        found = [known.get((name, part, way)) for name in names]
        is_goal = any(one is not None and one.is_goal for one in found)
        return way_name(way), is_goal, tuple(_gap(one) for one in found)

    slices = _names(one.slice for one in ordered)
    best = [one for one in ordered if one.way == BEST_WAY]
    return DifferenceTable(
        ours,
        next((quoted(one.ways[0]) for one in best if one.ways[0]), ""),
        tuple(_column(name, ordered) for name in names),
        tuple((part, tuple(row(part, way) for way in ways)) for part in slices),
    )


def _column(name: str, differences: Sequence[Difference]) -> Column:
    mine = [one for one in differences if one.theirs == name]
    ways = [one.ways[1] for one in mine if one.way == BEST_WAY and one.ways[1]]
    return Column(name, any(one.is_best_control for one in mine), quoted(ways[0]) if ways else "")


def _gap(one: Difference | None) -> Gap | None:
    return None if one is None else Gap(*gap(one.estimate), standing(one.estimate))


def _names(names: Iterable[Name]) -> tuple[Name, ...]:
    """Return every name once, in the order of their first places."""
    return tuple(dict.fromkeys(names))
