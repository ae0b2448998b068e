"""Documents out of single files, rows, and data sets of the hub.

What cannot be used is counted in `skipped` and left out: bytes that are no UTF-8, texts that are
empty. What is wrong as a whole is an error: a file that cannot be read, no such column.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ziphius.core.errors import MissingExtraError
from ziphius.data.document import Document
from ziphius.data.errors import DataError
from ziphius.data.kinds import (
    CODE,
    INSTALL,
    Kind,
    is_notebook,
    json_document,
    opened,
    plain_suffix,
)
from ziphius.data.tables import Row

BAD_TEXT, EMPTY, DUPLICATE = str(Kind.NOT_UTF8), "empty", "duplicate"
LONGEST_PIECE = 1 << 20
"""Bytes of a text file that make one document; a longer file is several, cut between lines."""
MOST_SHUFFLED = 10_000
"""Rows of the hub from which the next is drawn, where only a part is wanted."""


def read_file(path: Path, key: str, skipped: Counter[str]) -> Iterator[Document]:
    """Read one file of text as one document; one that is not UTF-8 is counted and skipped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        skipped[BAD_TEXT] += 1
        return
    if text.strip():
        yield Document(key, text.replace("\r\n", "\n"), is_code=plain_suffix(path) in CODE)
    else:
        skipped[EMPTY] += 1


def read_pieces(path: Path, skipped: Counter[str], *, is_code: bool) -> Iterator[Document]:
    """Read a file of text, a long one in pieces that end with a line, never whole."""
    with opened(path) as source:
        number, rest = 0, b""
        while block := source.read(LONGEST_PIECE - len(rest)):
            rest += block
            if len(rest) < LONGEST_PIECE:
                continue
            end = _place_to_cut(rest)
            piece, rest = rest[:end], rest[end:]
            number += 1
            yield from _piece(piece, f"{path}:{number}", is_code, skipped)
        key = f"{path}:{number + 1}" if number else str(path)
        if rest or not number:
            yield from _piece(rest, key, is_code, skipped)


def _place_to_cut(content: bytes) -> int:
    """Return a place after the last line, or else between two characters."""
    if place := content.rfind(b"\n") + 1:
        return place
    end = len(content)
    while end > len(content) - 4 and content[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if content[end - 1] >= 0xC0 else len(content)


def _piece(content: bytes, key: str, is_code: bool, skipped: Counter[str]) -> Iterator[Document]:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        skipped[BAD_TEXT] += 1
        return
    if text.strip():
        yield Document(key, text, is_code=is_code)
    else:
        skipped[EMPTY] += 1


def read_notebook(path: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Write the cells of a notebook one after another, without what they printed."""
    document = json_document(path)
    if not is_notebook(document):
        raise DataError(f"{path} is no notebook that can be read.")
    sources = (cell.get("source") for cell in document["cells"] if isinstance(cell, dict))
    cells = (
        "".join(s) if isinstance(s, list) and all(isinstance(x, str) for x in s) else s
        for s in sources
    )
    text = "\n\n".join(cell.strip("\n") for cell in cells if isinstance(cell, str) and cell.strip())
    if text:
        yield Document(str(path), text + "\n", is_code=True)
    else:
        skipped[EMPTY] += 1


def texts_of(
    origin: str, rows: Iterable[Row | None], column: str, skipped: Counter[str]
) -> Iterator[Document]:
    """Take one column out of rows; None stands for a row whose bytes are no UTF-8."""
    for number, row in enumerate(rows, start=1):
        if row is None:
            skipped[BAD_TEXT] += 1
            continue
        if column not in row:
            raise DataError(
                f"{origin}, row {number}: there is no column {column!r}. It has: "
                f"{', '.join(map(str, row))}. Name the right one with --data.column."
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{origin}, row {number}: the column {column!r} holds {type(text).__name__}, not "
                "text. Name another one with --data.column."
            )
        if text and text.strip():
            yield Document(f"{origin}:{number}", text)
        else:
            skipped[EMPTY] += 1


def rows_of_the_hub(name: str, shuffled: int | None) -> Iterator[dict[str, Any]]:
    """Stream a data set by name; code that comes with one is never run.

    Shuffled are its files, and within them the next rows: it is not read whole for that.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"The data set {name} comes from the hub, which needs datasets: {INSTALL}"
        ) from error
    dataset, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, split=split or "train", streaming=True)
        if shuffled is not None:
            rows = rows.shuffle(seed=shuffled, buffer_size=MOST_SHUFFLED)
        yield from rows
    except Exception as error:  # the library passes on whatever its many back ends raise
        raise DataError(
            f"The data set {dataset} cannot be streamed from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Check the name and "
            "the network; without one, give a local folder, .jsonl or .parquet file instead."
        ) from error
