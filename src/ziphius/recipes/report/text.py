"""Numbers and foreign text as a page shows them.

Text of a model can hold anything. Markup is escaped by the template; here go the characters that
markup cannot hold or that lie to the eye: control characters, halves of surrogate pairs and what
turns the direction of writing become visible signs.
"""

import math
import re
from collections.abc import Sequence

from ziphius.evals.intervals import Estimate

LONGEST_TEXT = 4_000
"""Characters of one text that are shown; of a longer one, its beginning and its end."""
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
MINUS = "\u2212"
TIMES = "\u00d7"
DASH = "\u2013"


def visible(text: str) -> str:
    """Replace what cannot be shown, or would hide, by a sign for it."""
    return _HIDDEN.sub(_sign, text.replace("\r\n", "\n"))


def shown(text: str) -> str:
    """Make any text safe and short enough to stand in a page; markup is still to be escaped."""
    return visible(clipped(text))


def clipped(text: str, longest: int = LONGEST_TEXT) -> str:
    """Leave out the middle of a text that is too long, and say how much that is."""
    if len(text) <= longest:
        return text
    ends = longest // 2
    left_out = len(text) - 2 * ends
    return f"{text[:ends]} [... {left_out:,} characters left out ...] {text[-ends:]}"


def spaced(text: str) -> str:
    """Keep a number and its percent sign on one line."""
    return text.replace(" %", "\u00a0%")


def quoted(text: str) -> str:
    """Set a name apart from the sentence it stands in."""
    return f"\u201c{text}\u201d"


def listed(parts: Sequence[str]) -> str:
    """Join parts as a sentence does."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, word: str) -> str:
    """Write how many there are of a thing."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # control pictures
    if code == 0x7F:
        return "\u2421"
    return f"[U+{code:04X}]"


def percent(value: float, digits: int = 0) -> str:
    """Write a share."""
    return f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return signed(100 * value, 1)


def size(value: float) -> str:
    """Write the size of a difference of shares in percentage points, without a sign."""
    return f"{abs(100 * value):.1f}"


def signed(value: float, digits: int) -> str:
    """Write a number with its sign; zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def share(estimate: Estimate) -> tuple[str, str]:
    """Write a share and its interval, in percent."""
    low, high = (f"{100 * end:.0f}" for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.1f}", f"{low}{DASH}{high}"


def gap(estimate: Estimate) -> tuple[str, str]:
    """Write a difference in points and its interval."""
    return points(estimate.value), f"{points(estimate.low)} to {points(estimate.high)}"


def standing(estimate: Estimate) -> str:
    """Name the side of 0 that an interval is on, as the page's style does; its ends are within."""
    if estimate.covers(0.0):
        return "unsure"
    return "better" if estimate.value > 0.0 else "worse"


def times(ours: float, theirs: float) -> str:
    """Write a ratio."""
    return f"{plain(ours / theirs)}{TIMES}"


def plain(value: float) -> str:
    """Write a number of any size with about three digits."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0.0:
        return "0"
    magnitude = abs(value)
    if magnitude < 1e-3 or magnitude >= 1e7:
        digits = 0 if magnitude < 1e-3 else 2
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.{digits}e}").replace("-", MINUS)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    text = f"{magnitude:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return (MINUS if value < 0 else "") + text


def short(value: float) -> str:
    """Write a large count with a letter: 1.5M."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{plain(value / size)}{letter}"
    return plain(value)


def byte_size(value: float) -> str:
    """Write a number of bytes."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{plain(value / 1024**power)} {unit}"
    return f"{plain(value)} B"


def duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 60:
        return f"{plain(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
