import re
from pathlib import Path

import pytest

from tests.unit.data.made import use_corpora
from ziphius.data import inventory
from ziphius.data.corpora import CORPORA
from ziphius.data.inventory import measure, origin, page
from ziphius.data.mixes import DOMAINS, MIXES

PAGE = (Path(__file__).parents[3] / "DATA.md").read_text()


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


@pytest.mark.parametrize("name", CORPORA)
def test_the_page_knows_every_corpus(name: str) -> None:
    corpus = CORPORA[name]
    (row,) = [row for row in rows(PAGE) if row[1].startswith(f"{name}: ")]
    assert row[:4:3] == [corpus.domain, corpus.licence]
    assert row[1] == f"{name}: {corpus.what}"
    if corpus.assets:
        assert row[2] == origin(corpus)


def test_the_page_knows_no_other_corpus() -> None:
    assert sum(row[0] in DOMAINS for row in rows(PAGE)) == len(CORPORA)


@pytest.mark.parametrize("name", MIXES)
def test_the_page_knows_every_mix(name: str) -> None:
    (row,) = [row for row in rows(PAGE) if row[0] == name]
    shares = [f"{100 * MIXES[name].shares.get(domain, 0.0):.0f} %" for domain in DOMAINS]
    assert row[1:-1] == shares


def test_there_are_thirty_megabytes_of_three_kinds() -> None:
    sizes: dict[str, float] = dict.fromkeys(DOMAINS, 0.0)
    for row in rows(PAGE):
        if row[0] in DOMAINS and re.fullmatch(r"[\d.]+", row[-1]):
            sizes[row[0]] += float(row[-1])
    assert sum(sizes.values()) >= 30.0
    assert min(sizes["general"], sizes["chinese"], sizes["code"]) > 10.0


def test_a_page_is_written_from_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    use_corpora(monkeypatch, {"general": ["12345"] * 2 + ["67890"]})
    import ziphius.data.prepare as prepare

    monkeypatch.setattr(inventory, "CORPORA", prepare.CORPORA)
    assert measure(prepare.CORPORA["general"]) == inventory.Measured(2, 10)
    (row,) = [row for row in rows(page()) if row[0] == "general"]
    assert row[-2:] == ["2", "0.0"]
