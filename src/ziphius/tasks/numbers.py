"""The number that an answer states, read exactly; what can be read in two ways is no number.

Read are signs in any typography, thousands (`1,000`, `1 000`, `1{,}000`), decimals, exponents,
powers, fractions, currencies, percents, words such as million, and the LaTeX and Markdown around
them. Nothing is evaluated: `12-5` is a sum to do and no answer.

It does not stand on math-verify, whose version 0.9.0 reads `73 or 72` as 72 and `12,34` as 12.34,
and whose parser of expressions calls eval on what a model wrote.

Where an answer stands, in this order: in the last `\\boxed{}`, on the line after the last `####`,
after "the answer is", after the last `=` of the last sentence with a number, or else as the last
number of that sentence.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LONGEST_TEXT = 20_000
"""Characters; what is longer is not read."""
LONGEST_STATEMENT = 1_000
"""Characters of a sentence, line or box; a longer one states no number."""
_NEAR = 80
"""Characters around a number that are looked at."""
MOST_DIGITS = 30
"""On each side of a point, and of the largest power or exponent."""

SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "lakh": 10**5,
    "crore": 10**7,
    "\u767e": 10**2,
    "\u5343": 10**3,
    "\u4e07": 10**4,
    "\u4ebf": 10**8,
}
_LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_UNIT_LETTERS = "ACFGJLNVWcdghlmst"
"""Letters that may be glued to a number as its unit, unlike those of unknowns."""

_SIGNS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_BLANKS = "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f"
_TYPOGRAPHY = {
    **{0xFF01 + place: 0x21 + place for place in range(0x5E)},
    **dict.fromkeys(map(ord, _SIGNS), "-"),
    **dict.fromkeys(map(ord, _BLANKS), " "),
    **dict.fromkeys(map(ord, _NOTHING), None),
    ord("\u2044"): "/",
    ord("\u2215"): "/",
    ord("\u2019"): "'",
    ord("\u22c5"): "\u00d7",
    ord("\u00b7"): "\u00d7",
}
_BROKEN = "\u00bc\u00bd\u00be\u2150-\u215e"
_RAISED = "\u00b9\u00b2\u00b3\u2070\u2074-\u2079"
_SPELLED = [
    (r"[ \t]+", " "),
    (r"(?m)^ ?[*\u2022] ", ""),  # a bullet
    (r"<=|>=|!=|\\(?:[gln]eq?|[gl]t)(?![a-z])", "<"),
    (r"[-=]+>|\u2192|\u21d2|\\(?:[Rr]ightarrow|implies|to)(?![a-z])", "="),
    (r"\{,\}", ","),
    (r"\\[,;: ]|~", " "),
    (r"\\!|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle(?![a-z])", ""),
    (r"\\[()\[\]]", " "),
    (r"\\([$%#&_])", r"\1"),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*([0-9])\s*([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
    (r"\\(?:times|cdot)(?![a-z])", "\u00d7"),
    (r"\\div(?![a-z])", "\u00f7"),
    (r"\^ ?\{? ?\\(?:circ|degree) ?\}?", "\u00b0"),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox) ?\{([^{}]*)\}", r" \1 "),
]
_MARKDOWN = re.compile(r"(?<![0-9*_])(\*\*|\*|__|`)(?=\S)([^*_`\n]*)(?<=\S)\1(?![0-9*_])")

_RUN = r"(?:[0-9]+(?:[.,'_][0-9]+| [0-9]{3}(?![0-9]))*|\.[0-9]+)"
_POWER = r"\s?\^\s?\{?\s?(?P<%s>[-+]?[0-9]+)\s?\}?"
_MONEY = "(?-i:[A-Z]{1,3})?[$\u20ac\u00a3\u00a5\u20b9]"
_TOKEN = re.compile(
    r"(?P<sign>(?<![A-Za-z0-9_)\]}%.])[-+]|\b(?:minus|negative)\s+)?"
    rf"(?P<money>{_MONEY}\s?)?(?P<inner>[-+])?(?:"
    rf"(?:(?P<mixed>{_RUN})\s?)?\\frac\s?\{{\s?(?P<over>-?{_RUN})\s?\}}\s?"
    rf"\{{\s?(?P<under>{_RUN})\s?\}}"
    rf"|(?:(?P<whole>[0-9]+) +)?(?P<top>{_RUN})\s?/\s?(?P<bottom>{_RUN})"
    rf"|(?P<run>{_RUN})(?:[eE](?P<e>[-+]?[0-9]+)|\s?[\u00d7x*]\s?10{_POWER % 'ten'}"
    rf"|{_POWER % 'power'})?"
    r")(?:(?P<letter>(?-i:[kKMB]))(?![A-Za-z0-9])"
    rf"|(?P<scales>(?:[ -]?(?:{'|'.join(SCALES)})(?:s?\b|(?<=[\u4e00-\u9fff])))+))?"
    r"(?:(?P<percent> ?%| ?per ?cent\b)| ?\u00b0)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(
    rf"(?P<int>[0-9]{{1,{MOST_DIGITS}}}|[0-9]{{1,3}}(?:(?P<sep>[, '_])[0-9]{{3}})"
    rf"(?:(?P=sep)[0-9]{{3}}){{0,9}})?(?P<part>\.[0-9]{{1,{MOST_DIGITS}}})?"
)

_JOINED_BEFORE = re.compile(
    r"(?:[-+*/\u00d7\u00f7\u00b1<>\u2264\u2265\u2260^]|(?<=[0-9]) ?:|\\pm) ?[({]*$"
)
_LEAST = re.compile(r"(?:\b(?:more|less|fewer|greater|other) than|\bat (?:least|most))\W*$", re.I)
_INSIDE = re.compile(r"(?:\u221a|\\[A-Za-z]+\s*(?:\[[^\]]*\])?\{)\s*$")
_JOINED_AFTER = re.compile(
    r"\^| ?[)}]* ?(?:[-+*/\u00d7\u00f7^:]|\\pm|\u00b1) ?[({]*[-+]? ?[$]?[0-9.\\]|"
    r"\s?[xX]\s?[0-9]|_|['.,][0-9]|:[0-9]|\s?\\(?:sqrt|pi|frac)|[ ]?[\u03c0\u221a]"
)
_LISTED = re.compile(
    r"(?:[,;/&|~:-]|\b(?:and|to|through|then|plus|minus|times)|[\u548c\u3001\u81f3\u5230])\W*$",
    re.I,
)
_UNSURE = re.compile(
    r"\b(?:or|either|neither|nor|not|cannot|versus|vs)\b|n't\b"
    r"|\band (?:a|one) (?:half|third|quarter)\b|\u6216|\u4e0d\u662f",
    re.I,
)
_CUE = re.compile(
    r"\banswers?\b(?:\s+(?:to|for|of)\b[^\n.:=]{0,40}?)?[\s*_\"']*(?:\b(?:is|are|was|be)\b|[:=])"
    r"|\u7b54\u6848 ?(?:\u662f|\u4e3a|[:=])",
    re.I,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=\u3002)")


@dataclass(frozen=True)
class Number:
    """A number that a text states."""

    value: Fraction
    is_percent: bool = False

    def equals(self, number: Fraction) -> bool:
        """Compare with the right number, which has no unit.

        A percent is a unit like another: 50% is 50. Where the right number is no integer it may
        also be meant as a part of 1.
        """
        if self.value == number:
            return True
        return self.is_percent and number.denominator != 1 and self.value == 100 * number


@dataclass(frozen=True)
class _Found:
    """What looks like a number at a place of a text; None where it cannot be read for sure."""

    start: int
    end: int
    number: Number | None


def final_number(text: str) -> Number | None:
    """Return the number that a text states as its answer; None without one, or with several."""
    if len(text) > LONGEST_TEXT:
        return None
    before, mark, after = _in_plain_signs(text).rpartition("####")
    boxes = _last_boxes(after) or ([] if mark else _last_boxes(before))
    if boxes:
        numbers = {_only_number(box) for box in boxes}
        return numbers.pop() if len(numbers) == 1 else None
    if mark:
        return _only_number(_first_with_digits(after.splitlines()))
    return _said_number(after)


def read_number(text: str) -> Number | None:
    """Read a text that is a number and nothing else; None if it is not."""
    if len(text) > LONGEST_TEXT:
        return None
    plain = _in_plain_signs(text).strip()
    found = list(_numbers(plain))
    if len(found) != 1 or (found[0].start, found[0].end) != (0, len(plain)):
        return None
    return found[0].number


def written(value: Fraction) -> str:
    """Write a number as digits with a point, or as a fraction where those would not end."""
    rest = value.denominator
    places = 0
    while rest % 10 == 0 or rest % 5 == 0 or rest % 2 == 0:
        rest //= 10 if rest % 10 == 0 else 5 if rest % 5 == 0 else 2
        places += 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + (f"{whole}.{part}" if part else whole)


def _in_plain_signs(text: str) -> str:
    """Write typography, LaTeX and Markdown as the signs of a keyboard."""
    text = re.sub(f"\u207b?[{_RAISED}]+", lambda m: f"^{{{_compatible(m[0])}}}", text)
    text = re.sub(f"(?<=[0-9])(?=[{_BROKEN}])", " ", text)
    text = re.sub(f"[{_BROKEN}]", lambda m: _compatible(m[0]), text)
    text = text.translate(_TYPOGRAPHY)
    for pattern, replacement in _SPELLED:
        text = re.sub(pattern, replacement, text)
    return _MARKDOWN.sub(r"\2", _MARKDOWN.sub(r"\2", text))


def _compatible(text: str) -> str:
    """Write raised digits and broken fractions as plain ones."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _last_boxes(text: str) -> list[str]:
    """Return what the boxes hold on the last line that has one."""
    last = text.rfind("boxed")
    line = text[max(text.rfind("\n", 0, last) + 1, last - LONGEST_STATEMENT) :]
    contents: list[str] = []
    for match in re.finditer(r"\\f?boxed ?\{", line if last >= 0 else ""):
        depth = 1
        content = line[match.end() :][:LONGEST_STATEMENT]
        for place, character in enumerate(content):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                contents.append(content[:place])
                break
    return contents


def _first_with_digits(parts: list[str]) -> str:
    return next((part for part in parts if any(map(str.isnumeric, part))), "")


def _only_number(statement: str) -> Number | None:
    """Read a statement in which every number is the same."""
    statement = statement.rpartition("=")[2]
    numbers = {found.number for found in _numbers(statement)}
    if len(numbers) != 1 or _UNSURE.search(statement):
        return None
    return numbers.pop()


def _said_number(text: str) -> Number | None:
    """Read prose: after its last cue the first number, without one the last."""
    cues = list(_CUE.finditer(text))
    if cues:
        lines = text[cues[-1].end() :].splitlines()
        sentence = _first_with_digits(_SENTENCE_END.split(_first_with_digits(lines)))
    else:
        line = _first_with_digits(text.splitlines()[::-1])
        sentence = _first_with_digits(_SENTENCE_END.split(line)[::-1])
    _, equals, statement = sentence.rpartition("=")
    found = list(_numbers(statement))
    if not found or _UNSURE.search(statement):
        return None
    is_first = bool(cues or equals)
    chosen = found[0] if is_first else found[-1]
    neighbours = found[:2] if is_first else found[-2:]
    if len(neighbours) == 2 and neighbours[0].number != neighbours[1].number:
        between = statement[neighbours[0].end : neighbours[1].start]
        is_remark = is_first and "(" in between
        if not is_remark and (len(between.split()) < 2 or _LISTED.search(between)):
            return None
    return chosen.number


def _numbers(text: str) -> Iterator[_Found]:
    """Find what looks like a number; digits of names and of the powers of units are none."""
    if len(text) > LONGEST_STATEMENT:
        return
    for match in _TOKEN.finditer(text):
        before = text[max(0, match.start() - _NEAR) : match.start()]
        after = text[match.end() :][:_NEAR]
        if (not match["money"] and re.search(r"[A-Za-z_]$", before)) or (
            re.search(r"[A-Za-z] ?\^ ?\{? ?-?$", before)
        ):
            continue
        is_part = (
            _JOINED_BEFORE.search(before)
            or _LEAST.search(before)
            or _INSIDE.search(before)
            or _JOINED_AFTER.match(after)
            or _is_digit(before[-1:])
            or _is_digit(after[:1])
            or _has_unknown(after)
            or _goes_on(match[0], after)
        )
        yield _Found(match.start(), match.end(), None if is_part else _number(match))


def _is_digit(character: str) -> bool:
    """Tell digits of any script, raised ones too."""
    return character.isnumeric()


def _has_unknown(after: str) -> bool:
    """Tell a letter glued to a number that is no unit's, such as x."""
    return re.match(rf"(?![{_UNIT_LETTERS}])[A-Za-z](?![A-Za-z])", after) is not None


def _goes_on(number: str, after: str) -> bool:
    """Tell a decimal number that is cut off: 0.333..."""
    return "." in number and re.match(r"\.{2}|\u2026", after) is not None


def _number(match: re.Match[str]) -> Number | None:
    value = _magnitude(match)
    if value is None:
        return None
    minus = sum(match[name] not in (None, "+") for name in ("sign", "inner"))
    if minus == 2 or (match["sign"] and match["inner"]):
        return None
    value *= _LETTER_SCALES.get(match["letter"], 1)
    for scale in re.findall("|".join(SCALES), (match["scales"] or "").lower()):
        value *= SCALES[scale]
    return Number(-value if minus else value, match["percent"] is not None)


def _magnitude(match: re.Match[str]) -> Fraction | None:
    if match["run"]:
        return _with_exponent(match)
    above, below = match["over"] or match["top"], match["under"] or match["bottom"]
    is_negative = above.startswith("-")
    top, bottom = _plain(above.lstrip("-")), _plain(below)
    whole = _plain(match["mixed"] or match["whole"] or "0")
    if top is None or not bottom or whole is None or (whole and above.startswith("0")):
        return None
    if is_negative:
        return None if whole else -top / bottom
    if whole and top >= bottom:
        return None  # 3 4/2 is two numbers
    return whole + top / bottom


def _with_exponent(match: re.Match[str]) -> Fraction | None:
    value = _plain(match["run"])
    exponent = match["e"] or match["ten"] or match["power"]
    if value is None or exponent is None:
        return value
    if len(exponent.lstrip("-+")) > 2 or abs(int(exponent)) > MOST_DIGITS:
        return None
    base = value if match["power"] else Fraction(10)
    if base == 0 and int(exponent) <= 0:
        return None
    power: Fraction = base ** int(exponent)
    return power if match["power"] else value * power


def _plain(run: str) -> Fraction | None:
    """Read digits with thousands and a point."""
    match = _PLAIN.fullmatch(run)
    if match is None or not (match["int"] or match["part"]):
        return None
    separator = match["sep"]
    return Fraction((match["int"] or "0").replace(separator or ",", "") + (match["part"] or ""))
