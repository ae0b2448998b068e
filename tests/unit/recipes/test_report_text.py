"""Numbers and foreign text as the page shows them."""

import math

import pytest

from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.text import (
    LONGEST_TEXT,
    byte_size,
    clipped,
    counted,
    duration,
    gap,
    listed,
    plain,
    points,
    share,
    short,
    standing,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("4-1=3\n\t+7=10", "4-1=3\n\t+7=10"),
        ("a\r\nb\rc", "a\nb\u240dc"),
        ("a\0b\x1b[31m\x7f", "a\u2400b\u241b[31m\u2421"),
        ("\ud800 and \udfff", "[U+D800] and [U+DFFF]"),
        ("12\u202e34", "12[U+202E]34"),
        ("zero\u200bwidth\ufeff", "zero[U+200B]width[U+FEFF]"),
        ("\u9e7f \U0001f433", "\u9e7f \U0001f433"),
        ("<script>]]>", "<script>]]>"),
    ],
)
def test_what_hides_becomes_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
    visible(text).encode()


def test_a_long_text_loses_its_middle() -> None:
    assert clipped("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    text = clipped("a" + "x" * 1_000_000 + "z")
    assert len(text) < LONGEST_TEXT + 60
    assert (text[0], text[-1]) == ("a", "z")
    assert "[... 996,002 characters left out ...]" in text


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (3.14159, "3.14"),
        (0.25, "0.25"),
        (31.4159, "31.4"),
        (-2.5, "\u22122.5"),
        (1180.4, "1,180"),
        (0.00001, "1e\u22125"),
        (-1.5e-12, "\u22122e\u221212"),
        (123_456_789.0, "1.23e8"),
        (math.nan, "not a number"),
        (-math.inf, "infinite"),
    ],
)
def test_a_number_has_about_three_digits(value: float, word: str) -> None:
    assert plain(value) == word


def test_counts_sizes_and_times_have_units() -> None:
    assert [short(value) for value in (7, 1_512_000, 9.7e13)] == ["7", "1.51M", "97T"]
    assert [byte_size(value) for value in (448, 1_536, 6_050_000)] == [
        "448 B",
        "1.5 KiB",
        "5.77 MiB",
    ]
    assert [duration(value) for value in (1.42, 59.9, 61.2, 7_260)] == [
        "1.42 s",
        "59.9 s",
        "1 min 01 s",
        "2 h 01 min",
    ]


def test_differences_carry_their_sign_and_nothing_has_none() -> None:
    assert [points(value) for value in (0.0512, -0.02, -0.0001)] == ["+5.1", "\u22122.0", "0.0"]
    assert gap(Estimate(0.05, -0.01, 0.11)) == ("+5.0", "\u22121.0 to +11.0")
    assert share(Estimate(0.501, 0.45, 0.55)) == ("50.1", "45\u201355")


def test_an_interval_is_on_a_side_of_0_only_if_it_does_not_touch_it() -> None:
    ends = [(0.01, 0.2), (0.0, 0.2), (-0.1, 0.2), (-0.2, 0.0), (-0.2, -0.01)]
    found = [standing(Estimate((low + high) / 2, low, high)) for low, high in ends]
    assert found == ["better", "unsure", "unsure", "unsure", "worse"]


def test_words_are_joined_and_counted_as_in_a_sentence() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [counted(count, "seed") for count in (1, 2, 1_000)] == [
        "1 seed",
        "2 seeds",
        "1,000 seeds",
    ]
