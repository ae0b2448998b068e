"""Which documents of a domain are used: each text once, up to a limit, and a hundredth held out.

Sources of one domain take turns by bytes, so that a limit cuts the largest first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice

from ziphius.data.document import HELD_OUT_SHARE, Document
from ziphius.data.readers import BAD_TEXT, DUPLICATE

FEW_DOCUMENTS = 50
"""With fewer documents than this, one of them would be far more than a hundredth of the text."""


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
