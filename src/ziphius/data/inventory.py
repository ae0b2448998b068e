"""`python -m ziphius.data.inventory DATA.md`: write what the embedded corpora are, and how much.

Sizes are those of the text after extraction, without exact duplicates, measured here and now; the
code depends on the versions of Python and of the packages, which are written beside it.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ziphius.core.assets import find_asset
from ziphius.core.files import write_file
from ziphius.data.corpora import CORPORA, Corpus, documents
from ziphius.data.mixes import DOMAINS, MIXES
from ziphius.data.selection import choose

MEGABYTE = 1_000_000

_HEAD = """\
# Training text

What `ziphius pretrain` learns from when nobody names a text of their own. Every file comes from a
pinned package of the Python package index or from the running Python, is checked by sha256, and is
read as data: no code of those packages is imported for it. This page is written by
`python -m ziphius.data.inventory DATA.md`.

"""

_TAIL = """
Mathematics has no size of its own: as many exercises are made as the mix has room for, so that
their share of the text on disk is their share of the mix.

One document in a hundred is held out by a hash of its name and never trained on; it is what losses
and baselines are measured on. Exact duplicates are dropped. No benchmark's questions are in any of
this. What a run prints at its start and end says how many tokens each domain really gave.
"""


@dataclass(frozen=True)
class Measured:
    """How much text a corpus has."""

    documents: int
    size_bytes: int


def measure(corpus: Corpus) -> Measured:
    """Read a corpus as a run would."""
    texts = choose({"": documents(corpus, Counter())}, float("inf"), Counter())
    sizes = [len(document.text.encode()) for document in texts]
    return Measured(len(sizes), sum(sizes))


def page() -> str:
    """Write the page; fetches the assets that are not in the cache."""
    measured = {name: measure(c) for name, c in CORPORA.items() if not c.endless}
    lines = [_HEAD, "| domain | corpus | from | licence | documents | MB |", "|" + "---|" * 6]
    for name, corpus in sorted(CORPORA.items(), key=lambda pair: DOMAINS.index(pair[1].domain)):
        sizes = ("-", "as needed")
        if name in measured:
            megabytes = measured[name].size_bytes / MEGABYTE
            sizes = (f"{measured[name].documents:,}", f"{megabytes:.1f}")
        cells = (corpus.domain, f"{name}: {corpus.what}", origin(corpus), corpus.licence, *sizes)
        lines.append(f"| {' | '.join(cells)} |")
    total = sum(size.size_bytes for size in measured.values()) / MEGABYTE
    lines.append(f"| | all | | | | {total:.1f} |")
    lines += ["", "| mix | " + " | ".join(DOMAINS) + " | code filled in the middle |"]
    lines.append("|" + "---|" * (len(DOMAINS) + 2))
    for name, mix in MIXES.items():
        shares = " | ".join(f"{100 * mix.shares.get(domain, 0.0):.0f} %" for domain in DOMAINS)
        lines.append(f"| {name} | {shares} | {100 * mix.fim_rate:.0f} % |")
    return "\n".join(lines) + "\n" + _TAIL


def origin(corpus: Corpus) -> str:
    """Name the packages a corpus comes from."""
    if corpus.assets:
        return ", ".join(sorted({find_asset(name).requirement for name in corpus.assets}))
    return corpus.version if corpus.package else "`ziphius.data.mathematics`"


if __name__ == "__main__":
    write_file(Path(sys.argv[1]), page())
