"""Curves over the steps of a run: losses over their baselines, reward, length, balance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from ziphius.recipes.report import svg
from ziphius.recipes.report.figure import Figure, Key, Table, smoothed, thinned
from ziphius.recipes.report.text import plain

MOST_POINTS = 240
"""Of a drawn curve; more cannot be seen at the width of a panel."""
MOST_ROWS = 16
SMOOTH_FROM = 24
"""Points from which a curve is drawn as its running average over a faint line of all values."""


@dataclass(frozen=True)
class Curve:
    """Values over steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    class_: str = "s0"
    is_dots: bool = False
    """Draw each value by itself: measurements now and then, not every step."""


@dataclass(frozen=True)
class Panel:
    """What one panel of curves shows."""

    name: str
    """Unique in the page, of letters and hyphens."""
    title: str
    caption: str
    curves: tuple[Curve, ...]
    levels: Mapping[str, float] = field(default_factory=dict)
    """Lines across, by their names."""
    is_log: bool = False
    from_zero: bool = False
    is_percent: bool = False


def curve_figure(panel: Panel) -> Figure:
    """Draw a panel of curves."""
    x, y = _scales(panel)
    words = [(tick, f"{100 * tick:g} %") for tick in y.ticks()] if panel.is_percent else None
    parts = [svg.axes(x, y, x_label="step", y_words=words), *_levels(panel.levels, x, y)]
    for curve in panel.curves:
        parts += _drawn(curve, x, y)
    keys = tuple(
        Key(curve.class_, 0 if curve.is_dots else None, curve.name) for curve in panel.curves
    )
    return Figure(
        panel.title,
        panel.caption,
        svg.picture(panel.name, panel.title, _description(panel), parts, svg.HEIGHT),
        _table(panel),
        keys if len(keys) > 1 else (),
    )


def _scales(panel: Panel) -> tuple[svg.Scale, svg.Scale]:
    values = [value for curve in panel.curves for value in curve.values]
    values += panel.levels.values()
    places = [step for curve in panel.curves for step in curve.steps]
    low, high = (
        svg.log_range(values)
        if panel.is_log
        else svg.rounded_range(values, from_zero=panel.from_zero)
    )
    if panel.is_percent:
        low, high = max(low, 0.0), min(high, 1.0)
    x = svg.Scale(min(places), max(places), svg.LEFT, svg.WIDTH - svg.RIGHT)
    return x, svg.Scale(low, high, svg.HEIGHT - svg.BOTTOM, svg.TOP, panel.is_log)


def _levels(levels: Mapping[str, float], x: svg.Scale, y: svg.Scale) -> list[Markup]:
    """Draw lines across, each named at its right end, with names pushed apart where they touch."""
    parts, last = [], -math.inf
    for name, value in sorted(levels.items(), key=lambda item: -item[1]):
        height = y(value)
        word_height = max(height - 4.0, last + 12.0)
        last = word_height
        parts.append(svg.line(x.start, height, x.end, height, "level"))
        word = f"{name} {plain(value)}"
        parts.append(svg.label(x.end, word_height, word, "level-name", "end"))
    return parts


def _drawn(curve: Curve, x: svg.Scale, y: svg.Scale) -> list[Markup]:
    if curve.is_dots:
        return [
            svg.marker(
                x(step), y(value), 0, f"mark {curve.class_}", _hover(curve, step, value), r=3.4
            )
            for step, value in zip(curve.steps, curve.values, strict=True)
            if math.isfinite(value)
        ]
    chosen = thinned(len(curve.values), MOST_POINTS)
    if len(curve.values) < SMOOTH_FROM:
        return [_line(curve, chosen, curve.values, x, y, f"curve {curve.class_}")]
    finite = all(map(math.isfinite, curve.values))
    window = max(5, len(curve.values) // 12)
    even = smoothed(curve.values, window) if finite else curve.values
    return [
        _line(curve, chosen, curve.values, x, y, f"curve faint {curve.class_}"),
        _line(curve, chosen, even, x, y, f"curve {curve.class_}"),
    ]


def _line(
    curve: Curve,
    chosen: Sequence[int],
    values: Sequence[float],
    x: svg.Scale,
    y: svg.Scale,
    class_: str,
) -> Markup:
    return svg.path(
        [
            (x(curve.steps[at]), y(values[at])) if math.isfinite(values[at]) else None
            for at in chosen
        ],
        class_,
    )


def _hover(curve: Curve, step: float, value: float) -> str:
    return f"{curve.name}, step {plain(step)}: {plain(value)}"


def _description(panel: Panel) -> str:
    parts = [
        f"{curve.name} goes from {plain(curve.values[0])} at step {plain(curve.steps[0])} to "
        f"{plain(curve.values[-1])} at step {plain(curve.steps[-1])}."
        for curve in panel.curves
        if curve.values
    ]
    parts += [f"Level {name}: {plain(value)}." for name, value in panel.levels.items()]
    return " ".join(parts)


def _table(panel: Panel) -> Table:
    """Lay out some steps of all curves, each value beside the newest step it was known at."""
    steps = sorted({step for curve in panel.curves for step in curve.steps})
    known = [dict(zip(curve.steps, curve.values, strict=True)) for curve in panel.curves]
    rows = []
    for at in thinned(len(steps), MOST_ROWS):
        cells = [plain(values[steps[at]]) if steps[at] in values else "" for values in known]
        rows.append((plain(steps[at]), *cells))
    for name, value in panel.levels.items():
        rows.append((name, plain(value), *[""] * (len(known) - 1)))
    headers = ("step", *(curve.name for curve in panel.curves))
    return Table(panel.title, headers, tuple(rows))
