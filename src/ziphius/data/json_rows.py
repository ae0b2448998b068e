"""JSON as a stream: objects on lines, in one array, or over several lines each, in any Unicode.

At no time is more than one block and one object in memory. A line that is no JSON costs that line;
a fault inside an array costs the rest of the file, so it is an error.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

from ziphius.data.errors import DataError

BLOCK = 1 << 18
LONGEST = 1 << 28
"""Characters of one object; what is longer is no row but a bracket that nobody closed."""
_SPACE = re.compile(r"[ \t\r\n]*")
_NEAR_THE_END = 16
"""Characters, such as those of an escape, that a block may end within."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, or why there is none at that place."""

    where: str
    """File and line, for errors."""
    data: Any = None
    problem: str | None = None


def json_rows(name: str, stream: io.BufferedReader) -> Iterator[Row]:
    """Read every row of a file that is open at its beginning.

    Raises:
        DataError: an array is broken, or a file that is not UTF-8 is broken anywhere.
    """
    head = stream.peek(4)
    encoding = _encoding(head)
    first = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
    line, is_whole, _ = first.partition("\n")
    if first.startswith("[") or (is_whole and _goes_on(line)):
        with io.TextIOWrapper(stream, encoding, newline="") as text:
            yield from _values(name, text)
    elif encoding == "utf-8-sig":
        yield from _lines(name, stream)
    else:
        with io.TextIOWrapper(stream, encoding, newline="\n") as text:
            yield from _lines(name, _encoded_lines(name, encoding, text))


def _encoding(head: bytes) -> str:
    """Tell the encoding by the mark at the front, or by where the first characters have zeros."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(head) > 1 and head[0] == 0:
        return "utf-16-be"
    if len(head) > 1 and head[1] == 0:
        return "utf-16-le"
    return "utf-8-sig"


def _goes_on(line: str) -> bool:
    """Tell whether a first line is the beginning of an object that others end: printed JSON."""
    return line.startswith("{") and line.rstrip().endswith(("{", "[", ","))


def _encoded_lines(name: str, encoding: str, stream: TextIO) -> Iterator[bytes]:
    try:
        for line in stream:
            yield line.encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise DataError(f"{name} is no {encoding}: {error}. Write it as UTF-8.") from error


def _lines(name: str, lines: BinaryIO | Iterator[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            yield Row(where, json.loads(line.decode("utf-8-sig")))
        except UnicodeDecodeError:
            yield Row(where, problem="no UTF-8.")
        except (ValueError, RecursionError) as error:
            yield Row(where, problem=f"no JSON: {error}.")


def _values(name: str, stream: TextIO) -> Iterator[Row]:
    """Read the entries of an array, or objects that stand one after another over many lines."""
    text = _Text(name, stream)
    is_array = text.peek() == "["
    if is_array:
        text.take("[")
    number = 0
    while (character := text.peek()) != "":
        if is_array and character == "]":
            text.take("]")
            if text.peek():
                raise DataError(f"{text.where}: more follows after the end of the array.")
            return
        if is_array and number:
            text.take(",")
            text.peek()
        number += 1
        where = f"{text.where}, entry {number}" if is_array else text.where
        yield Row(where, text.value())
    if is_array:
        raise DataError(f"{text.where}: the array is never closed. Is the file whole?")


class _Text:
    """A stream of text that values are taken from, with the line it has come to."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name, self._stream = name, stream
        self._buffer, self._place, self._line = "", 0, 1
        self._decoder = json.JSONDecoder()

    @property
    def where(self) -> str:
        return f"{self._name}, line {self._line}"

    def peek(self) -> str:
        """Return the next character that is no white space and leave it; '' at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._place)
            assert match is not None, "the pattern matches nothing too"
            self._go_to(match.end())
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more(BLOCK):
                return ""

    def take(self, character: str) -> None:
        """Pass the character that has to be next."""
        if self.peek() != character:
            found = self._buffer[self._place : self._place + 20]
            raise DataError(f"{self.where}: {character!r} must stand before {found!r}.")
        self._go_to(self._place + 1)

    def value(self) -> Any:
        """Take the next value, with as much text as it needs."""
        size = BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                if self._may_go_on(error) and self._more(size):
                    size *= 2
                    continue
                line = self._line + self._buffer.count("\n", self._place, error.pos)
                raise DataError(f"{self._name}, line {line}: no JSON: {error.msg}.") from error
            except RecursionError as error:
                raise DataError(f"{self.where}: no JSON: nested too deeply.") from error
            self._go_to(end)
            return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Tell whether more text could mend an error: it is at the end, or in an open string."""
        is_open = error.msg.startswith("Unterminated string")
        is_last = error.pos >= len(self._buffer) - _NEAR_THE_END
        return (is_open or is_last) and len(self._buffer) - self._place < LONGEST

    def _more(self, size: int) -> bool:
        try:
            new = self._stream.read(size)
        except UnicodeError as error:
            raise DataError(
                f"{self.where}, or after it: {error}. Write the file as UTF-8."
            ) from error
        self._buffer, self._place = self._buffer[self._place :] + new, 0
        return bool(new)

    def _go_to(self, place: int) -> None:
        self._line += self._buffer.count("\n", self._place, place)
        self._place = place
