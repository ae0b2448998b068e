"""The report in a real browser: nothing goes wrong, nothing is fetched, everything can be read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import PROGRAM, Page, chromium
from tests.reports import HOSTILE, example_report, hostile_transcripts
from ziphius.recipes.report.page import SECTIONS, write_report
from ziphius.recipes.report.sections import Report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
DESK, PHONE = (1280, 900), (400, 844)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def show(
    page: Page, report: Report, folder: Path, *, size: tuple[int, int] = DESK, scheme: str = "light"
) -> None:
    path = folder / "report.html"
    write_report(report, path)
    page.events.clear()
    page.open(path.as_uri(), width=size[0], height=size[1], scheme=scheme)
    assert page.complaints() == []
    assert page.requests() == [path.as_uri()]


@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read(
    page: Page, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    show(page, example_report(), tmp_path, size=size, scheme=scheme)
    for name in SECTIONS:
        assert page.ask(f"document.getElementById('{name}').offsetHeight") > 0
    assert page.ask("document.documentElement.scrollWidth") <= size[0], "the page scrolls sideways"
    assert page.ask(NARROW) == [], "a picture is no wider than its panel"
    assert page.ask(UNREADABLE) == [], "contrast of text below 4.5 to 1 (WCAG 2.2, 1.4.3)"


def test_the_browser_would_have_told(page: Page, tmp_path: Path) -> None:
    """The checks above see what they are made for."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<body style='width:3000px;color:#ccc;background:#fff'><p>pale</p>"
        "<script>console.error('no')</script><img src='missing.png'>"
    )
    page.events.clear()
    page.open(path.as_uri(), width=1280, height=900)
    assert len(page.complaints()) >= 1
    assert len(page.requests()) == 2
    assert page.ask("document.documentElement.scrollWidth") > 1280
    assert page.ask(UNREADABLE) != []


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_hostile_text_does_nothing(page: Page, tmp_path: Path, size: tuple[int, int]) -> None:
    report = example_report(transcripts=hostile_transcripts())
    show(page, report, tmp_path, size=size)
    page.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.ask("document.title") == report.title
    assert page.ask("document.scripts.length + document.images.length") == 0
    assert page.ask("document.documentElement.scrollWidth") <= size[0]
    assert page.ask("document.querySelectorAll('.transcript').length") == len(HOSTILE)
    assert HOSTILE[0] in page.ask("document.querySelector('.transcript pre').textContent")
    assert page.complaints() == []


def test_a_report_without_figures_is_a_page(page: Page, tmp_path: Path) -> None:
    show(page, Report("Nothing yet", "Nothing was run."), tmp_path)
    assert page.ask("document.querySelectorAll('.missing li').length") == len(SECTIONS)


NARROW = """
[...document.querySelectorAll('.panel > svg')]
  .filter(svg => svg.getBoundingClientRect().width > svg.parentElement.clientWidth)
  .map(svg => svg.getAttribute('aria-labelledby'))
"""

# The ratio is WCAG's; a text stands on the nearest background that is not transparent.
UNREADABLE = """
(() => {
  const parts = word => word.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest('style, title, desc, .skip')) continue;
    const style = getComputedStyle(element);
    const ink = light(parts(element.closest('svg') ? style.fill : style.color));
    const paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) found.push(`${element.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
