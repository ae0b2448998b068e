"""A figure of the page: a picture with its caption and the same numbers as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of words; the first column names the row."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Key:
    """One entry of a legend: how a mark looks, and what it stands for."""

    class_: str
    shape: int | None
    """A marker's shape; None for a line."""
    text: str


@dataclass(frozen=True)
class Figure:
    """One panel."""

    title: str
    caption: str
    picture: Markup
    table: Table
    keys: tuple[Key, ...] = field(default=())


def thinned(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` places, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Average each value with its neighbours, `window` of them in all.

    Near an end there are fewer, as many on each side, so that a slope is not bent there.
    """
    found = []
    for at in range(len(values)):
        reach = min(window // 2, at, len(values) - 1 - at)
        part = values[at - reach : at + reach + 1]
        found.append(sum(part) / len(part))
    return found
