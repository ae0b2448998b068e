"""One text with its name, and the numbers that are drawn from names.

Whatever is decided for a document (held out or not, filled in the middle or not, its place in a
sample) is a hash of its key: it does not depend on order, on the machine or on a stream of random
numbers, and stays the same when other documents come or go.
"""

import hashlib
from dataclasses import dataclass

HELD_OUT_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the key that names its file or entry, unique within its domain."""

    key: str
    text: str
    is_code: bool = False
    held_out: bool | None = None
    """Kept from training or not; None leaves it to the key."""


def fraction(*names: str | int) -> float:
    """Draw a number in [0, 1) that depends on the names alone."""
    content = "\0".join(map(str, names)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest()) / 2**56


def is_held_out(document: Document) -> bool:
    """Say whether a document is among the 1 % that no training ever sees."""
    if document.held_out is not None:
        return document.held_out
    return fraction("held out", document.key) < HELD_OUT_SHARE
