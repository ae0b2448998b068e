"""Drawing in SVG: scales, ticks and a frame with axes, coloured by the classes of the page's style.

Hand-written rather than by a plotting library, because a page that follows the reader's light or
dark scheme and font needs marks with classes, not with colours, and real text; and a reader's hover
needs a title on every mark.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ziphius.recipes.report.text import MINUS, plain, shown, visible

WIDTH, HEIGHT = 380, 236
"""Of a panel in user units: about the width of a phone, so that text keeps its size there."""
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 36
LARGEST = 1e300
"""What is beyond is drawn here, so that no range of a scale overflows."""


@dataclass(frozen=True)
class Scale:
    """From values to places along one side of a panel."""

    low: float
    high: float
    start: float
    """Place of `low`."""
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value, not beyond the ends."""
        low, high, at = (self._bent(number) for number in (self.low, self.high, value))
        part = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(part, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values within the scale, at most `count` + 1."""
        return decades(self.low, self.high) if self.is_log else steps(self.low, self.high, count)

    def _bent(self, value: float) -> float:
        return math.log10(max(value, 1.0 / LARGEST)) if self.is_log else value


def steps(low: float, high: float, count: int) -> list[float]:
    """Return at most `count` + 1 round values 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 5, 10):
        step = power * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first <= count:
            break
    return [round(place * step, 12) for place in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, not more than six."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**power for power in range(first, last + 1, stride)]


def rounded_range(values: Iterable[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Return a range that holds all finite values with a little air."""
    finite = [min(max(value, -LARGEST), LARGEST) for value in values if math.isfinite(value)]
    finite = finite or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if from_zero:
        low = min(low, 0.0)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return (low if from_zero and low == 0.0 else low - air), high + air


def log_range(values: Iterable[float]) -> tuple[float, float]:
    """Return whole decades that hold all finite values above 0."""
    finite = [
        min(max(value, 1.0 / LARGEST), LARGEST)
        for value in values
        if math.isfinite(value) and value > 0.0
    ] or [1.0]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def element(tag: str, content: str = "", /, **attributes: object) -> Markup:
    """Write one element; text in content and attributes is escaped, other markup is not."""
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _attribute(value))
        for name, value in attributes.items()
        if value is not None
    )
    inner = content if isinstance(content, Markup) else Markup.escape(shown(content))
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inner)


def join(parts: Iterable[Markup]) -> Markup:
    """Put elements one after another."""
    return Markup("").join(parts)


def label(x: float, y: float, text: str, class_: str = "tick", anchor: str = "middle") -> Markup:
    """Write a word at a place."""
    return element("text", text, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float] | None], class_: str) -> Markup:
    """Draw a line through points; None interrupts it."""
    words, is_down = [], False
    for point in points:
        if point is not None:
            words.append(f"{'L' if is_down else 'M'}{_number(point[0])} {_number(point[1])}")
        is_down = point is not None
    return element("path", d=" ".join(words), class_=class_)


def marker(x: float, y: float, shape: int, class_: str, title: str, *, r: float = 4.5) -> Markup:
    """Draw one of five shapes, told apart without colour: disc, square, diamond, two triangles."""
    hover = element("title", title)
    if shape % 5 == 0:
        return element("circle", hover, cx=x, cy=y, r=r, class_=class_)
    corners = (
        [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
        [(0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        [(0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
    )[shape % 5 - 1]
    places = " ".join(
        f"{_number(x + r * right)},{_number(y + r * down)}" for right, down in corners
    )
    return element("polygon", hover, points=places, class_=class_)


def axes(
    x: Scale, y: Scale, *, x_label: str, y_words: Sequence[tuple[float, str]] | None = None
) -> Markup:
    """Draw the frame: light lines across, numbers at the left, values below."""
    words = y_words or [(value, tick_word(value, y.is_log)) for value in y.ticks()]
    parts = [line(x.start, y(value), x.end, y(value), "grid") for value, _ in words]
    parts += [label(x.start - 7, y(value) + 3.8, word, anchor="end") for value, word in words]
    parts += [label(x(value), y.start + 16, tick_word(value, x.is_log)) for value in x.ticks()]
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(label((x.start + x.end) / 2, y.start + 32, x_label, "axis-name"))
    return join(parts)


def picture(
    name: str, title: str, description: str, parts: Iterable[Markup], height: float
) -> Markup:
    """Wrap parts into a picture that a screen reader can tell about.

    Args:
        name: unique in the page; ids are made of it.
        title: what it is.
        description: what it shows, in a sentence.
        parts: what is drawn.
        height: in user units.
    """
    head = element("title", title, id=f"{name}-title") + element(
        "desc", description, id=f"{name}-desc"
    )
    return element(
        "svg",
        head + join(parts),
        viewBox=f"0 0 {WIDTH} {_number(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def tick_word(value: float, is_log: bool = False) -> str:
    """Write the number beside a tick."""
    if is_log and value > 0:
        power = round(math.log10(value))
        if abs(power) > 2:
            return f"1e{MINUS if power < 0 else ''}{abs(power)}"
    if abs(value) >= 10_000:
        return f"{plain(value / 1000)}k"
    return plain(value)


def _attribute(value: object) -> str:
    return _number(value) if isinstance(value, float) else visible(str(value))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
