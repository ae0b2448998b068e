"""Pictures put values where they belong, whatever the values are."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import example_report
from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.curves import Curve, Panel, curve_figure
from ziphius.recipes.report.figure import smoothed, thinned
from ziphius.recipes.report.heat import heat_figures
from ziphius.recipes.report.sections import BEST_WAY, Difference, ExpertLoad
from ziphius.recipes.report.svg import HEIGHT, WIDTH, Scale, decades, element, steps
from ziphius.recipes.report.whiskers import VALUES, difference_figure, pass_figure

FINITE = st.floats(-1e9, 1e9)


def panel(*values: float, **options: object) -> Panel:
    curve = Curve("reward", list(range(1, len(values) + 1)), list(values))
    return Panel("p", "Reward", "mean", (curve,), **options)  # type: ignore[arg-type]


def places(picture: str) -> list[tuple[float, float]]:
    """Return the corners of all lines."""
    paths = re.findall(r' d="([^"]*)"', picture)
    return [
        (float(x), float(y)) for path in paths for x, y in re.findall(r"[ML](\S+) ([^\sML]+)", path)
    ]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.0, 90.0, [20.0, 40.0, 60.0, 80.0]),
        (3.0, 7.1, [3.0, 4.0, 5.0, 6.0, 7.0]),
        (-0.023, 0.088, [-0.02, 0.0, 0.02, 0.04, 0.06, 0.08]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert steps(low, high, 5) == found


@given(st.tuples(FINITE, FINITE).map(sorted).filter(lambda ends: ends[1] - ends[0] > 1e-6))
def test_ticks_are_few_and_within(ends: list[float]) -> None:
    low, high = ends
    found = steps(low, high, 5)
    air = 1e-6 * (high - low) + 1e-9 * max(map(abs, ends))
    assert 1 <= len(found) <= 6
    assert all(low - air <= tick <= high + air for tick in found)


def test_decades_are_thinned() -> None:
    assert decades(1e-7, 1e-5) == pytest.approx([1e-7, 1e-6, 1e-5])
    assert len(decades(1e-20, 1e20)) <= 7


def test_a_scale_keeps_its_ends() -> None:
    scale = Scale(0.0, 10.0, 200.0, 20.0)
    assert [scale(value) for value in (0.0, 5.0, 10.0, 11.0)] == [200.0, 110.0, 20.0, 20.0]
    assert Scale(1e-6, 1e-4, 0.0, 100.0, is_log=True)(1e-5) == pytest.approx(50.0)
    assert Scale(3.0, 3.0, 0.0, 100.0)(3.0) == 50.0


def test_a_curve_rises_with_its_values() -> None:
    (x1, y1), (x2, y2), (x3, y3) = places(curve_figure(panel(1.0, 3.0, 2.0)).picture)
    assert x1 < x2 < x3
    assert y2 < y3 < y1, "a picture counts from its top"
    assert x2 - x1 == pytest.approx(x3 - x2)


@given(st.lists(st.floats(), min_size=2, max_size=40), st.booleans())
def test_any_values_give_a_picture(values: list[float], is_log: bool) -> None:
    figure = curve_figure(panel(*values, levels={"bound": 1.0}, is_log=is_log))
    ElementTree.fromstring(figure.picture)
    assert "nan" not in re.sub(r"not a number|<desc.*?</desc>", "", figure.picture)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(figure.picture))


def test_a_value_that_is_no_number_interrupts_the_line() -> None:
    found = curve_figure(panel(1.0, 2.0, math.nan, 2.0, 1.0)).picture
    assert re.findall(r' d="([^"]*)"', found)[0].count("M") == 2


def test_long_curves_are_thinned_and_smoothed() -> None:
    figure = curve_figure(panel(*(math.sin(step) for step in range(5_000))))
    assert len(figure.picture) < 20_000
    assert len(figure.table.rows) <= 20
    assert "faint" in figure.picture
    assert smoothed([0.0, 3.0, 0.0, 3.0], 3) == [0.0, 1.0, 2.0, 3.0]
    assert smoothed([6.0, 5.0, 4.0, 3.0, 2.0], 5) == [6.0, 5.0, 4.0, 3.0, 2.0], "a slope stays"
    assert thinned(10, 4) == [0, 3, 6, 9]
    assert thinned(3, 4) == [0, 1, 2]


def test_names_of_levels_do_not_touch() -> None:
    figure = curve_figure(panel(1.0, 5.0, levels={"unigram": 3.00, "bigram": 3.01}))
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="level-name"', figure.picture)]
    assert abs(heights[0] - heights[1]) >= 11


def test_a_difference_shows_the_side_of_its_interval() -> None:
    def drawn(low: float, high: float) -> str:
        one = Difference("easy", "GRPO", "control", Estimate((low + high) / 2, low, high))
        return difference_figure("d", [one]).picture

    assert "mark better" in drawn(0.01, 0.2)
    assert "mark unsure" in drawn(-0.01, 0.2)
    assert "mark worse" in drawn(-0.3, -0.2)


def test_whiskers_reach_from_end_to_end() -> None:
    one = Difference("easy", "GRPO", "control", Estimate(0.05, -0.01, 0.2))
    tree = ElementTree.fromstring(difference_figure("d", [one]).picture)
    lines = [part.attrib for part in tree.iter("line") if "whisker" in part.attrib["class"]]
    zero = next(part.attrib for part in tree.iter("line") if part.attrib["class"] == "zero")
    dot = next(tree.iter("circle")).attrib
    left, right = (float(lines[0][end]) for end in ("x1", "x2"))
    assert left < float(zero["x1"]) < float(dot["cx"]) < right
    assert (float(dot["cx"]) - left) / (right - left) == pytest.approx(0.06 / 0.21, abs=0.01)


def test_rows_are_headed_by_their_slice() -> None:
    def one(slice_name: str, way: str) -> Difference:
        return Difference(slice_name, "GRPO", "RFT", Estimate(0.1, 0.0, 0.2), way=way)

    figure = difference_figure(
        "d", [one("easy", BEST_WAY), one("easy", "greedy"), one("hard", "x")]
    )
    names = re.findall(r'class="(row-head|row-name)"[^>]*>([^<]*)<', figure.picture)
    assert names == [
        ("row-head", "easy"),
        ("row-name", "best way of each"),
        ("row-name", "greedy"),
        ("row-head", "hard"),
        ("row-name", "x"),
    ]
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="row-', figure.picture)]
    assert heights == sorted(set(heights))


def test_panels_that_belong_together_share_a_scale() -> None:
    near = Difference("easy", "GRPO", "RFT", Estimate(0.02, 0.01, 0.03))
    far = Difference("easy", "GRPO", "SFT", Estimate(0.5, 0.4, 0.6))
    ticks = [
        re.findall(r'class="tick"[^>]*>([^<]*)<', difference_figure("d", [one], among).picture)
        for one, among in ((near, (far,)), (far, (near,)), (near, ()))
    ]
    assert ticks[0] == ticks[1] != ticks[2]


def test_each_seed_is_a_dot_within_the_picture() -> None:
    one = Difference("easy", "GRPO", "RFT", Estimate(0.1, 0.05, 0.2), by_seed=(0.02, 0.4))
    figure = difference_figure("d", [one])
    tree = ElementTree.fromstring(figure.picture)
    low, high = (
        float(part.attrib["cx"]) for part in tree.iter("circle") if part.attrib["class"] == "seed"
    )
    [mark] = [part for part in tree.iter("circle") if part.attrib["class"] != "seed"]
    assert low < float(mark.attrib["cx"]) < high < WIDTH - VALUES, "not cut at the end of the scale"
    assert "small dots: each seed" in figure.caption
    assert figure.table.headers[-1] == "each seed"
    assert figure.table.rows[0][-1] == "+2.0, +40.0"
    assert "seed" not in difference_figure("d", [replace(one, by_seed=())]).table.headers


def test_every_arm_has_both_rates_and_its_own_shape() -> None:
    arms = example_report().arms
    figure = pass_figure("p", 0, arms)
    marks = re.findall(r'<(\w+)[^>]* class="mark (arm\d)( hollow)?"', figure.picture)
    assert len(marks) == 2 * len(arms)
    assert len(figure.table.rows) == len(arms)
    assert figure.table.rows[0][0] == "SFT"
    points = re.findall(r'points="([^"]*)"', figure.picture)
    assert len({len(found.split()) for found in points}) == 2, "triangles, and what has four"
    looks = [(tag, class_) for tag, class_, hollow in marks if not hollow]
    assert len(set(looks)) == len(arms) > 5, "no two arms look alike"


def test_heat_shows_who_has_more_than_an_even_share() -> None:
    counts = [[10, 10, 40, 0]] * 6 + [[10, 10, 10, 10]] * 6
    [figure] = heat_figures(ExpertLoad("pretrain", list(range(12)), {3: counts}))
    assert figure.title == "layer 3"
    colours = re.findall(r'class="(h\d)"', figure.picture)
    assert colours == ["h1", "h3", "h1", "h3", "h6", "h3", "h0", "h3"]
    assert figure.table.rows[2][1] == "2.67"


def test_experts_without_a_token_are_even() -> None:
    [figure] = heat_figures(ExpertLoad("pretrain", [1.0, 2.0], {0: [[0, 0], [0, 0]]}))
    assert re.findall(r'class="(h\d)"', figure.picture) == ["h3", "h3"]


def test_text_in_pictures_is_escaped() -> None:
    found = element("text", "</text><script>\0", title='"><x')
    assert found == '<text title="&#34;&gt;&lt;x">&lt;/text&gt;&lt;script&gt;\u2400</text>'
