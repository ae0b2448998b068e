"""Dots with whiskers: estimates and their 95 % intervals, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ziphius.evals.intervals import Estimate
from ziphius.recipes.report import svg
from ziphius.recipes.report.figure import Figure, Key, Table
from ziphius.recipes.report.sections import BEST_WAY, Arm, Difference
from ziphius.recipes.report.tables import way_name
from ziphius.recipes.report.text import MINUS, gap, percent, points, share, standing

VALUES = 54
"""Room for the numbers at the right."""
LETTER = 7.1
"""Room for a letter of a name at the left, in a wide font."""
LONGEST_NAME = 18
LINE = 16
COLOURS = 9
"""Of arms, in the page's style; with five shapes, 45 arms can be told apart."""


@dataclass(frozen=True)
class _Mark:
    estimate: Estimate
    class_: str
    shape: int
    word: str
    hover: str
    by_seed: tuple[float, ...] = ()


_Row = tuple[str, Sequence[_Mark]]
"""A name, and its marks from top to bottom; without marks it heads the rows below."""


def pass_figure(name: str, slice_place: int, arms: Sequence[Arm]) -> Figure:
    """Draw pass@1 and pass@k of every arm on one slice."""
    first = arms[0].slices[slice_place]
    one, many = "pass@1", f"pass@{first.k}"
    rows: list[_Row] = []
    for place, arm in enumerate(arms):
        found = arm.slices[slice_place]
        marks = []
        for word, estimate, class_ in (
            (one, found.pass_at_1, f"arm{place % COLOURS}"),
            (many, found.pass_at_k, f"arm{place % COLOURS} hollow"),
        ):
            hover = f"{arm.name}, {word}: {' %, interval '.join(share(estimate))}"
            marks.append(_Mark(estimate, class_, place, share(estimate)[0], hover))
        rows.append((arm.name, marks))
    scale = _scale(0.0, 1.0, rows)
    words = [(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    best = max(arms, key=lambda arm: arm.slices[slice_place].pass_at_1.value)
    description = (
        f"On {first.name}, {best.name} has the highest pass@1, "
        f"{percent(best.slices[slice_place].pass_at_1.value)}."
    )
    return Figure(
        first.name,
        f"{first.problems} problems, {first.samples} samples of each",
        _rows_picture(name, first.name, description, rows, scale, words),
        _pass_table(first.name, slice_place, arms),
        (Key("neutral", 0, one), Key("neutral hollow", 0, many)),
    )


def difference_figure(
    name: str, differences: Sequence[Difference], among: Sequence[Difference] = ()
) -> Figure:
    """Draw the differences between two arms against 0, slice by slice, one row a way.

    Args:
        name: unique in the page.
        differences: of one pair of arms, in the order they are drawn.
        among: those that share the scale, so that panels can be compared by eye.
    """
    ours, theirs = differences[0].ours, differences[0].theirs
    title = f"{ours} {MINUS} {theirs}"
    ends = [
        end
        for one in (*differences, *among)
        for end in (one.estimate.low, one.estimate.high, *one.by_seed)
    ]
    low, high = svg.rounded_range([*ends, 0.0, 0.02, -0.02])
    rows: list[_Row] = []
    for one in differences:
        if one.slice not in [row_name for row_name, marks in rows if not marks]:
            rows.append((one.slice, []))
        rows.append((way_name(one.way), [_difference_mark(one)]))
    scale = _scale(low, high, [row for row in rows if row[1]])
    words = [(tick, points(tick).replace(".0", "")) for tick in svg.steps(low, high, 5)]
    caption = f"percentage points; right of the line {ours} is better"
    if any(one.by_seed for one in differences):
        caption += "; small dots: each seed"
    picture = _rows_picture(name, title, _told(differences), rows, scale, words, zero=True, air=5)
    return Figure(title, caption, picture, _difference_table(title, differences))


def _difference_mark(one: Difference) -> _Mark:
    hover = f"{one.slice}, {way_name(one.way)}: {' points, interval '.join(gap(one.estimate))}"
    value = points(one.estimate.value)
    return _Mark(one.estimate, standing(one.estimate), 0, value, hover, one.by_seed)


def _told(differences: Sequence[Difference]) -> str:
    return " ".join(
        f"On {one.slice}, {way_name(one.way)}, the difference is "
        f"{' points, interval '.join(gap(one.estimate))}."
        for one in differences
    )


def _difference_table(title: str, differences: Sequence[Difference]) -> Table:
    has_seeds = any(one.by_seed for one in differences)
    headers = ("slice", "asked", "difference", "95 % interval", *["each seed"] * has_seeds)
    rows = []
    for one in differences:
        ways = f" ({one.ways[0]}, {one.ways[1]})" if one.way == BEST_WAY and all(one.ways) else ""
        seeds = [", ".join(map(points, one.by_seed))] * has_seeds
        rows.append((one.slice, way_name(one.way) + ways, *gap(one.estimate), *seeds))
    return Table(f"{title}, in percentage points", headers, tuple(rows))


def _scale(low: float, high: float, rows: Sequence[_Row]) -> svg.Scale:
    longest = max(len(_fitting(name)) for name, _ in rows)
    return svg.Scale(low, high, 16 + LETTER * longest, svg.WIDTH - VALUES)


def _rows_picture(
    name: str,
    title: str,
    description: str,
    rows: Sequence[_Row],
    scale: svg.Scale,
    words: Sequence[tuple[float, str]],
    *,
    zero: bool = False,
    air: float = 8,
) -> Markup:
    tall = sum(max(len(marks), 1) * LINE + air for _, marks in rows)
    bottom = svg.TOP + tall
    parts = [svg.line(scale(at), svg.TOP, scale(at), bottom, "grid") for at, _ in words]
    parts += [svg.label(scale(at), bottom + 15, word) for at, word in words]
    if zero:
        parts.append(svg.line(scale(0.0), svg.TOP - 4, scale(0.0), bottom + 3, "zero"))
    top = svg.TOP + air / 2
    for row_name, marks in rows:
        if not marks:
            parts.append(svg.label(0.0, top + LINE / 2 + 4, row_name, "row-head", "start"))
            top += LINE + air
            continue
        middle = top + len(marks) * LINE / 2
        parts.append(svg.label(scale.start - 13, middle + 4, _fitting(row_name), "row-name", "end"))
        for place, mark in enumerate(marks):
            parts += _whisker(mark, scale, top + (place + 0.5) * LINE)
        top += len(marks) * LINE + air
    return svg.picture(name, title, description, parts, bottom + 24)


def _whisker(mark: _Mark, scale: svg.Scale, height: float) -> list[Markup]:
    low, high = scale(mark.estimate.low), scale(mark.estimate.high)
    at = scale(mark.estimate.value)
    seeds = [
        svg.element("circle", cx=scale(value), cy=height, r=2.0, class_="seed")
        for value in mark.by_seed
    ]
    return [
        svg.line(low, height, high, height, f"whisker {mark.class_}"),
        svg.line(low, height - 3, low, height + 3, f"whisker {mark.class_}"),
        svg.line(high, height - 3, high, height + 3, f"whisker {mark.class_}"),
        *seeds,
        svg.marker(at, height, mark.shape, f"mark {mark.class_}", mark.hover),
        svg.label(svg.WIDTH - 2, height + 4, mark.word, f"value {mark.class_}", "end"),
    ]


def _fitting(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"


def _pass_table(title: str, slice_place: int, arms: Sequence[Arm]) -> Table:
    rows = []
    for arm in arms:
        found = arm.slices[slice_place]
        rows.append((arm.name, *share(found.pass_at_1), *share(found.pass_at_k)))
    k = arms[0].slices[slice_place].k
    headers = ("arm", "pass@1, %", "95 % interval", f"pass@{k}, %", "95 % interval")
    return Table(title, headers, tuple(rows))
