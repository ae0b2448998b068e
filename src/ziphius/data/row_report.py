"""What became of the rows of conversation files: how many were read, skipped or changed.

One bad row of a large file costs that row and not the run; a file that is bad throughout is an
error. Both name file and line.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ziphius.data.errors import DataError

SHOWN = 10
"""Skipped rows that are named one by one; the others are counted."""


class RowReport:
    """Counts rows, takes those that cannot be used, and says when there are too many of them.

    Args:
        strict: the first bad row is an error.
        max_bad_share: largest share of bad rows, of all that were read.
        say: is told of each skipped row, and of nothing after the first few.
    """

    def __init__(
        self,
        *,
        strict: bool = True,
        max_bad_share: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.strict, self.max_bad_share = strict, max_bad_share
        self._say = say
        self.read = 0
        """Rows so far, bad ones included."""
        self.skipped = 0
        """Bad ones among them."""
        self.files_set_aside = 0
        """Files of folders in which no row fits; their rows are not among those read."""
        self.changes = Counter[str]()
        """What was read in another way than it was written: words for it -> how often."""
        self._shown: list[str] = []
        self._first: DataError | None = None

    def refuse(self, error: DataError) -> None:
        """Skip the row that an error names.

        Raises:
            DataError: that very error, if no row may be skipped.
        """
        if self.strict:
            raise error
        self.skipped += 1
        self._first = self._first or error
        if self.skipped <= SHOWN:
            self._tell(f"Skipped: {error}")

    def set_aside(self, file: str, first: DataError, rows: int) -> None:
        """Leave out a file of a folder that is no data, as another of its files is."""
        self.files_set_aside += 1
        if self.files_set_aside <= SHOWN:
            count = "its one row does not fit" if rows == 1 else f"none of its {rows:,} rows fits"
            self._tell(f"Set aside: {file}, as {count}: {first}")

    def check(self) -> None:
        """Refuse rows of which too many are bad; to be called once all are read.

        Raises:
            DataError: naming the first of them.
        """
        if self.skipped > self.max_bad_share * self.read:
            raise DataError(
                f"{self._first} {self.skipped:,} of {self.read:,} rows cannot be used, more than "
                f"--max-bad-share {self.max_bad_share:g} allows. Mend them, or allow more."
            ) from self._first
        if self.skipped > SHOWN:
            self._tell(f"Skipped: {self.skipped - SHOWN:,} more rows.")
        if self.files_set_aside > SHOWN:
            self._tell(f"Set aside: {self.files_set_aside - SHOWN:,} more files.")

    def document(self) -> dict[str, Any]:
        """Write down what became of the rows, for a start that does not read them again."""
        counts = {"read": self.read, "skipped": self.skipped, "changes": dict(self.changes)}
        return {**counts, "files_set_aside": self.files_set_aside, "shown": self._shown}

    def recall(self, document: Mapping[str, Any]) -> None:
        """Take over what was written down, and say it again."""
        self.read, self.skipped = document["read"], document["skipped"]
        self.files_set_aside = document["files_set_aside"]
        self.changes = Counter(document["changes"])
        for line in document["shown"]:
            self._tell(line)

    def _tell(self, line: str) -> None:
        self._shown.append(line)
        if self._say is not None:
            self._say(line)
