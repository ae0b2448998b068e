"""Encoded documents go into the shards of a domain: held out or not, with a line of progress."""

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from ziphius.data.document import Document, fraction, is_held_out
from ziphius.data.encode import Ids
from ziphius.data.shards import SPLITS, ShardWriter, SplitCounts

MEGABYTE = 1_000_000
ENOUGH_TOKENS = 1 << 14
"""Fewer held-out tokens than this say little about a model."""
MOST_HELD_OUT = 0.1

Encoded = tuple[Document, Ids]


def write_shards(folder: Path, name: str, encoded: Iterable[Encoded]) -> dict[str, SplitCounts]:
    """Write both splits of a domain into a folder that is not yet visible.

    Raises:
        OutputError: the disk is full, or cannot be written for another reason.
    """
    writers = {split: ShardWriter(folder, split) for split in SPLITS}
    try:
        with tokenizing_progress() as progress:
            task = progress.add_task(f"Tokenizing {name}", total=None)
            for split, (document, ids) in _assigned(encoded):
                size_bytes = len(document.text.encode())
                writers[split].append(ids, size_bytes)
                progress.update(task, advance=size_bytes / MEGABYTE)
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()
    return {split: writer.counts for split, writer in writers.items()}


def _assigned(encoded: Iterable[Encoded]) -> Iterator[tuple[str, Encoded]]:
    """Name the split of each document.

    Where the hundredth that is held out turns out to be too little to measure on, the documents
    that are next in line by their hash join it: so a larger sample of the same text never holds out
    what a smaller one trained on.
    """
    held_out = total = reserved = 0
    reserve: list[tuple[float, int, Encoded]] = []  # a heap, the last in line first
    for number, item in enumerate(encoded):
        document, ids = item
        total += len(ids)
        if is_held_out(document):
            held_out += len(ids)
            yield "validation", item
        elif document.held_out is False or held_out >= ENOUGH_TOKENS:
            yield "train", item
        else:
            heapq.heappush(reserve, (-fraction("held out", document.key), number, item))
            reserved += len(ids)
            while reserved - len(reserve[0][2][1]) >= ENOUGH_TOKENS:
                last = heapq.heappop(reserve)[2]
                reserved -= len(last[1])
                yield "train", last
    for _, _, item in sorted(reserve, reverse=True):
        needed = held_out < min(ENOUGH_TOKENS, MOST_HELD_OUT * total)
        held_out += len(item[1]) if needed else 0
        yield ("validation" if needed else "train"), item


def tokenizing_progress() -> Progress:
    """Make the line that shows how many megabytes were tokenized."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:.1f} MB"),
        RateColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # it would leave an empty line in a log
    )


class RateColumn(ProgressColumn):
    """Megabytes of text a second."""

    def render(self, task: Task) -> Text:
        """Show the rate once there is one."""
        return Text(f"{task.finished_speed or task.speed or 0.0:.1f} MB/s")
