"""Which documents of a domain are used: each text once, up to a limit, and a hundredth held out.

Sources of one domain take turns by bytes, so that a limit cuts the largest first. Where documents
come in no order of chance, a limit is kept by a random sample: they are read twice, once to learn
how large they are.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from ziphius.data.document import HELD_OUT_SHARE, Document, fraction
from ziphius.data.texts import BAD_TEXT, DUPLICATE

FEW_DOCUMENTS = 50
"""With fewer documents than this, one of them would be far more than a hundredth of the text."""

NOT_SAMPLED = "not in the sample"


@dataclass(frozen=True)
class Sample:
    """A part of many documents, whose fractions under a seed are below a bound."""

    below: float
    seed: int
    taken: int
    """Documents."""
    total: int
    taken_bytes: int
    total_bytes: int

    def of(self, documents: Iterable[Document], skipped: Counter[str]) -> Iterator[Document]:
        """Yield the documents that are in it; count the others."""
        for document in documents:
            if fraction("sample", self.seed, document.key) < self.below:
                yield document
            else:
                skipped[NOT_SAMPLED] += 1


def draw_sample(documents: Iterable[Document], limit_bytes: int, seed: int) -> Sample:
    """Draw as many documents as fit into a limit, and at least one; keeps none of them.

    Whether a document is in it hangs on its key, the seed and how much there is: a larger limit
    takes more beside the same ones.
    """
    places, sizes = array("d"), array("q")
    for document in documents:
        places.append(fraction("sample", seed, document.key))
        sizes.append(len(document.text.encode()))
    order = np.argsort(places)
    sums = np.cumsum(np.asarray(sizes)[order])
    taken = min(max(1, int(np.searchsorted(sums, limit_bytes, side="right"))), len(order))
    return Sample(
        below=float(places[order[taken]]) if taken < len(order) else 1.0,
        seed=seed,
        taken=taken,
        total=len(order),
        taken_bytes=int(sums[taken - 1]) if taken else 0,
        total_bytes=int(sums[-1]) if taken else 0,
    )


def choose(
    sources: Mapping[str, Iterator[Document]], limit_bytes: float, skipped: Counter[str]
) -> Iterator[Document]:
    """Yield documents until the limit or the end; count in `skipped` those left out on the way."""
    taken = dict.fromkeys(sources, 0)
    waiting = dict(sources)
    seen: set[bytes] = set()
    while waiting and sum(taken.values()) < limit_bytes:
        name = min(waiting, key=lambda source: taken[source])
        document = next(waiting[name], None)
        if document is None:
            del waiting[name]
            continue
        try:
            content = document.text.encode()
        except UnicodeEncodeError:  # half of a UTF-16 pair, which a JSON escape can spell
            skipped[BAD_TEXT] += 1
            continue
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest in seen:
            skipped[DUPLICATE] += 1
            continue
        seen.add(digest)
        taken[name] += len(content)
        yield document


def with_tails(documents: Iterable[Document]) -> Iterator[Document]:
    """Hold out the ends of documents where there are too few to hold out whole ones."""
    stream = iter(documents)
    first = list(islice(stream, FEW_DOCUMENTS))
    if len(first) == FEW_DOCUMENTS:
        yield from chain(first, stream)
        return
    for document in first:
        yield from _in_two(document)


def _in_two(document: Document) -> Iterator[Document]:
    """Cut a document before its last hundredth, at the end of a line if there is one."""
    text = document.text
    most = int(len(text) * (1.0 - HELD_OUT_SHARE))
    place = text.rfind("\n", 0, most) + 1 or most
    head = replace(document, text=text[:place], held_out=False)
    tail = replace(document, key=f"{document.key} (end)", text=text[place:], held_out=True)
    yield from (part for part in (head, tail) if part.text)
