"""Load of experts over the steps of a stage, one panel a layer."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ziphius.recipes.report import svg
from ziphius.recipes.report.figure import Figure, Key, Table, thinned
from ziphius.recipes.report.sections import ExpertLoad
from ziphius.recipes.report.text import TIMES, plain

MOST_COLUMNS = 44
MOST_TABLE_COLUMNS = 8
TALLEST = 180
BOUNDS = (0.5, 0.75, 0.9, 1.1, 1.33, 2.0)
"""Between the seven colours, as shares of an even load: below a half, ..., above twice."""

Floats = NDArray[np.float64]


def heat_figures(load: ExpertLoad) -> list[Figure]:
    """Draw the load of every layer's experts over the steps."""
    return [
        _heat_figure(f"experts-{layer}", f"layer {layer}", load.steps, counts)
        for layer, counts in load.counts_by_layer.items()
        if len(counts)
    ]


def heat_keys() -> tuple[Key, ...]:
    """Return the legend that all panels share."""
    words = [f"< {BOUNDS[0]:g}{TIMES}"]
    words += [f"{low:g}\u2013{high:g}{TIMES}" for low, high in pairwise(BOUNDS)]
    words.append(f"> {BOUNDS[-1]:g}{TIMES}")
    return tuple(Key(f"h{place}", 1, word) for place, word in enumerate(words))


def _heat_figure(
    name: str, title: str, steps: Sequence[float], counts: Sequence[Sequence[int]]
) -> Figure:
    shares, edges = _binned(np.asarray(counts, dtype=np.float64), MOST_COLUMNS)
    experts = shares.shape[1]
    tall = min(TALLEST, 20 * experts)
    x = svg.Scale(0, len(shares), svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = svg.Scale(0, experts, svg.TOP, svg.TOP + tall)
    parts = [
        cell for expert in range(experts) for cell in _row(expert, shares[:, expert], x, y, steps)
    ]
    stride = max(1, experts // 8)
    parts += [
        svg.label(svg.LEFT - 7, (y(expert) + y(expert + 1)) / 2 + 3.8, f"{expert}", anchor="end")
        for expert in range(0, experts, stride)
    ]
    for at in thinned(len(shares) + 1, 5):
        parts.append(svg.label(x(at), y.end + 16, plain(steps[min(edges[at], len(steps) - 1)])))
    parts.append(svg.label((x.start + x.end) / 2, y.end + 32, "step", "axis-name"))
    end = shares[-1]
    caption = f"{experts} experts, numbered at the left"
    description = (
        f"At the end expert {int(end.argmax())} has the most tokens, {plain(end.max())} times an "
        f"even share, and expert {int(end.argmin())} the fewest, {plain(end.min())} times."
    )
    picture = svg.picture(name, f"Load of experts, {title}", description, parts, y.end + 36)
    return Figure(title, caption, picture, _table(title, steps, counts))


def _row(
    expert: int, shares: Floats, x: svg.Scale, y: svg.Scale, steps: Sequence[float]
) -> list[Markup]:
    """Draw one expert, neighbours of one colour as one cell."""
    colours = np.searchsorted(BOUNDS, shares)
    starts = [0, *(np.flatnonzero(np.diff(colours)) + 1).tolist(), len(shares)]
    cells = []
    for first, last in pairwise(starts):
        share = float(shares[first:last].mean())
        hover = f"expert {expert}: {plain(share)} times an even share"
        cells.append(
            svg.element(
                "rect",
                svg.element("title", hover),
                x=x(first),
                y=y(expert) + 0.5,
                width=x(last) - x(first),
                height=max(y(expert + 1) - y(expert) - 1.0, 0.5),
                class_=f"h{colours[first]}",
            )
        )
    return cells


def _binned(counts: Floats, most: int) -> tuple[Floats, list[int]]:
    """Return loads as shares of an even one, [columns, E], and where the columns begin and end."""
    edges = sorted(set(np.linspace(0, len(counts), min(most, len(counts)) + 1).astype(int)))
    sums = np.add.reduceat(counts, edges[:-1], axis=0)
    means = sums.mean(axis=1, keepdims=True)
    return np.divide(sums, means, out=np.ones_like(sums), where=means > 0), [int(e) for e in edges]


def _table(title: str, steps: Sequence[float], counts: Sequence[Sequence[int]]) -> Table:
    shares, edges = _binned(np.asarray(counts, dtype=np.float64), MOST_TABLE_COLUMNS)
    headers = ("expert", *(f"from step {plain(steps[edge])}" for edge in edges[:-1]))
    rows = tuple(
        (f"{expert}", *(f"{share:.2f}" for share in shares[:, expert]))
        for expert in range(shares.shape[1])
    )
    return Table(f"Load of experts, {title}; 1 is an even share", headers, rows)
