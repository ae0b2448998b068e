"""The page is whole whatever a recipe has, and foreign text stays text."""

import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.reports import BEST, HOSTILE, SLICES, example_report, hostile_transcripts
from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.claims import NO_CLAIM, claims
from ziphius.recipes.report.page import SECTIONS, render, write_report
from ziphius.recipes.report.sections import Arm, ExpertLoad, Learning, LossCurve, Report

VOID = {"meta", "link", "br", "img", "line", "circle", "rect"}
FOUND = example_report()


class Reader(HTMLParser):
    """Reads a page as a browser would, and refuses elements that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_section_is_there_in_order() -> None:
    page = render(FOUND)
    reader = Reader(page)
    assert [name for name in reader.ids if name in SECTIONS] == list(SECTIONS)
    assert "Not in this report" not in page
    assert len(set(reader.ids)) == len(reader.ids)
    for title in SECTIONS.values():
        assert title in reader.text


def test_the_sections_are_those_of_the_report() -> None:
    assert set(SECTIONS) <= {field.name for field in fields(Report)}


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_a_missing_section_leaves_a_note(name: str) -> None:
    changes: dict[str, Any] = {name: None if name in ("learning", "experts") else ()}
    if name == "asked":
        changes["baselines"] = ()
    without = replace(FOUND, **changes, reasons={name: "the budget was two minutes"})
    reader = Reader(render(without))
    if name == "failures":  # what the figures tell is still there
        assert name in reader.ids
    else:
        assert name not in reader.ids
        assert f"{SECTIONS[name]}: the budget was two minutes." in reader.text


def test_a_report_of_a_title_alone_is_a_page() -> None:
    reader = Reader(render(Report("Nothing yet", "Nothing was run.")))
    assert "Nothing was run." in reader.text
    assert reader.text.count("nothing was recorded") == len(SECTIONS)


def test_what_is_too_short_for_a_curve_is_missing() -> None:
    short = Report(
        "Short",
        "One step.",
        arms=(Arm("SFT", "made by hand", ()),),
        losses=(LossCurve("pretrain", [1], [2.0]), LossCurve("SFT", [], [])),
        learning=Learning([1], [0.5]),
        experts=ExpertLoad("pretrain", [], {1: []}),
    )
    reader = Reader(render(short))
    assert not {"losses", "learning", "experts"} & set(reader.ids)
    assert "arms" in reader.ids


def test_the_summary_begins_with_the_claim() -> None:
    page = render(FOUND)
    [summary] = re.findall(r'<div class="summary">(.*?)</div>', page, re.DOTALL)
    said = [Reader(part).text for part in re.findall(r"<p>(.*?)</p>", summary)]
    assert said == [sentence.replace(" %", "\u00a0%") for sentence in claims(FOUND)]
    assert page.index("</h1>") < page.index(summary) < page.index(FOUND.purpose)


def test_a_report_without_room_for_reinforcement_learning_is_whole() -> None:
    """As a recipe fills it in where the fine-tuned model solves all: no GRPO, no controls."""
    here = {"SFT", "R1-Lite", "student alone", "R1-Lite bf16", "R1-Lite INT8"}
    without = replace(
        FOUND,
        arms=tuple(replace(arm, start="") for arm in FOUND.arms if arm.name in here),
        asked=tuple(row for row in FOUND.asked if row.arm in here),
        differences=tuple(one for one in FOUND.differences if {one.ours, one.theirs} <= here),
        taught=tuple(
            replace(one, teacher="SFT") if one.teacher == "GRPO" else one for one in FOUND.taught
        ),
        learning=None,
        failures=("No GRPO: the model solves every problem.",),
        reasons={"differences": "the model solves every problem"},
    )
    page = render(without)
    reader = Reader(page)
    assert f'<div class="summary"><p>{NO_CLAIM}</p></div>' in page
    assert not {"differences", "learning"} & set(reader.ids)
    assert {"taught", "asked", "failures"} <= set(reader.ids)
    assert "Against every control: the model solves every problem." in reader.text
    assert "No GRPO: the model solves every problem." in reader.text
    assert "R1-Lite less each of these" in reader.text


def test_self_corrections_are_shown_where_there_are_any() -> None:
    missing = "There is no column of self-corrections: no arm makes any, and no demonstration"
    reader = Reader(render(FOUND))
    assert missing in reader.text
    assert "self-corrections an answer" not in reader.text
    first = FOUND.arms[0]
    mended = replace(first.slices[1], corrections=Estimate(0.2, 0.1, 0.3))
    arms = (replace(first, slices=(first.slices[0], mended, *first.slices[2:])), *FOUND.arms[1:])
    reader = Reader(render(replace(FOUND, arms=arms)))
    assert missing not in reader.text
    assert "self-corrections an answer" in reader.text


def test_the_best_way_of_an_arm_is_marked() -> None:
    page = render(FOUND)
    assert page.count('<td class="estimate best">') == len(BEST) * len(SLICES)
    assert page.count("<em>best way</em>") == len(BEST) * len(SLICES)


def test_failures_are_listed_or_their_absence_is_said() -> None:
    assert "GRPO is not shown to be better than SFT" in render(FOUND)
    calm = replace(FOUND, differences=(), taught=())
    assert "None of the checks" in render(calm)


def test_the_page_asks_for_nothing() -> None:
    page = render(FOUND)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "iframe" not in reader.tags
    assert [link for link in reader.links if link[0] != "#" and not link.startswith("data:")] == []
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import", style)


def test_hostile_text_is_shown_and_does_nothing() -> None:
    hostile = replace(
        example_report(transcripts=hostile_transcripts()),
        title=HOSTILE[0],
        purpose=HOSTILE[1],
        notes=HOSTILE[:5],
        machine=tuple((text, text) for text in HOSTILE[:5]),
        failures=HOSTILE[:5],
    )
    page = render(hostile)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert "<script>document.title" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert "half a pair [U+D83D]" in reader.text
    assert "nul \u2400 bell \u2407 escape \u241b" in reader.text
    assert "\u202e" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert len(page) < 1_000_000, "a line of a megabyte is clipped wherever it stands"
    page.encode()


def test_an_example_says_so() -> None:
    assert "every figure on this page is made up" in render(FOUND)
    assert "made up" not in render(replace(FOUND, is_example=False))


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(FOUND, path)
    assert path.read_text(encoding="utf-8") == render(FOUND)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
