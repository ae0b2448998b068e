"""Tokens on disk: memory-mapped shards of one domain, read without copying what is not asked for.

    train-00000.bin ...       ids, uint16 or uint32, documents one after another, never torn apart
    train-lengths.npy         int64, tokens of each document, in the order of the shards
    validation-...            the same for the documents that were held out
    shards.json               sizes, counts, what was left out, and everything the ids depend on

Shapes: N documents of a split.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ziphius.core.errors import OutputError
from ziphius.data.encode import Ids
from ziphius.data.errors import DataError

SHARD_TOKENS = 1 << 26
SPLITS = ("train", "validation")
DESCRIPTION = "shards.json"


@dataclass
class SplitCounts:
    """How much one split of a domain holds."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """UTF-8 bytes of the texts."""
    shard_tokens: list[int] = field(default_factory=list)


class ShardWriter:
    """Append documents to the shards of one split."""

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self.counts = SplitCounts()
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._lengths: list[int] = []
        self._file: BinaryIO | None = None

    def append(self, ids: Ids, size_bytes: int) -> None:
        """Write one document; a shard that would grow too long is left for a new one."""
        counts = self.counts
        with explained(self._folder):
            if not counts.shard_tokens or counts.shard_tokens[-1] + len(ids) > self._limit:
                self._next_shard()
            assert self._file is not None
            self._file.write(ids.tobytes())
        self._lengths.append(len(ids))
        counts.shard_tokens[-1] += len(ids)
        counts.documents += 1
        counts.tokens += len(ids)
        counts.bytes += size_bytes

    def finish(self) -> None:
        """Write what is still in memory, and the lengths beside the shards."""
        path = _lengths_path(self._folder, self._split)
        with explained(self._folder):
            self.close()
            np.save(path, np.array(self._lengths, dtype=np.int64))

    def close(self) -> None:
        """Close what is open and write no more than that."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _next_shard(self) -> None:
        self.close()
        path = _shard_path(self._folder, self._split, len(self.counts.shard_tokens))
        self._file = path.open("xb")
        self.counts.shard_tokens.append(0)


class Split:
    """The documents of one split, by number."""

    def __init__(self, folder: Path, name: str, counts: SplitCounts, dtype: np.dtype[Any]) -> None:
        self.name, self.counts = name, counts
        self.lengths_N: NDArray[np.int64] = np.load(_lengths_path(folder, name), allow_pickle=False)
        self._starts_N = np.cumsum(self.lengths_N) - self.lengths_N
        self._shards = [
            np.memmap(_shard_path(folder, name, index), dtype=dtype, mode="r")
            for index in range(len(counts.shard_tokens))
        ]
        ends = np.cumsum(counts.shard_tokens, dtype=np.int64)
        self._shard_starts = ends - np.array(counts.shard_tokens, dtype=np.int64)

    def tokens(self, document: int, start: int, count: int) -> Ids:
        """Return a view of a part of a document, still on disk."""
        first = int(self._starts_N[document]) + start
        shard = int(np.searchsorted(self._shard_starts, first, side="right")) - 1
        first -= int(self._shard_starts[shard])
        return self._shards[shard][first : first + count]


@dataclass(frozen=True)
class DomainShards:
    """One domain, tokenized: both splits, and what preparing it left out."""

    name: str
    fingerprint: str
    train: Split
    validation: Split
    skipped: dict[str, int]

    def split(self, name: str) -> Split:
        """Choose a split by its name."""
        assert name in SPLITS
        return self.train if name == "train" else self.validation


def describe(
    folder: Path,
    counts: Mapping[str, SplitCounts],
    dtype: type[np.generic],
    skipped: Mapping[str, int],
    made_of: Mapping[str, Any],
) -> None:
    """Write the description, the last file of a folder of shards."""
    description = {
        "dtype": np.dtype(dtype).name,
        "splits": {name: asdict(counts[name]) for name in SPLITS},
        "skipped": dict(skipped),
        "made_of": dict(made_of),
    }
    with explained(folder):
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def open_shards(folder: Path, name: str) -> DomainShards:
    """Map the shards of a domain, after a look at the sizes of the files.

    Raises:
        DataError: a file is missing or has another size than was written.
    """
    with told_if_damaged(folder):
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        dtype = np.dtype(description["dtype"])
        train, validation = (
            open_split(folder, split, description["splits"][split], dtype) for split in SPLITS
        )
        return DomainShards(name, folder.name, train, validation, description["skipped"])


def open_split(folder: Path, name: str, counts: Mapping[str, Any], dtype: np.dtype[Any]) -> Split:
    """Map one split, after a look at the sizes of its files; call it in `told_if_damaged`."""
    known = SplitCounts(**counts)
    for index, tokens in enumerate(known.shard_tokens):
        path = _shard_path(folder, name, index)
        if path.stat().st_size != tokens * dtype.itemsize:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return Split(folder, name, known, dtype)


@contextmanager
def told_if_damaged(folder: Path) -> Iterator[None]:
    """Turn whatever reading damaged shards raises into a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The tokenized text in {folder} is damaged ({error}). Remove that folder; it is made "
            "anew when it is needed."
        ) from error


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what writing shards raises into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot keep tokenized text in {folder.parent}: {error.strerror or error}. Nothing "
            "was kept. Set ZIPHIUS_CACHE to a folder with room and the right to write, or take "
            "less text with --data.domain-megabytes or --data.own-megabytes; of conversations, "
            "--max-conversations."
        ) from error


def _shard_path(folder: Path, split: str, index: int) -> Path:
    return folder / f"{split}-{index:05d}.bin"


def _lengths_path(folder: Path, split: str) -> Path:
    return folder / f"{split}-lengths.npy"
