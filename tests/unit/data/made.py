"""Data made for tests: shards whose tokens are all different, and corpora that need no network."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ziphius.data.corpora import Corpus
from ziphius.data.document import Document
from ziphius.data.prepare import PreparedData
from ziphius.data.shards import SPLITS, DomainShards, ShardWriter, describe, open_shards

FIRST_VALIDATION_ID = 500_000
DOMAIN_IDS = 1_000_000


def make_shards(
    folder: Path,
    lengths: Sequence[int],
    *,
    validation: Sequence[int] = (5,),
    first_id: int = 0,
    shard_tokens: int = 64,
) -> DomainShards:
    """Write documents of these lengths; their tokens count up from `first_id` without a gap."""
    folder.mkdir(parents=True)
    writers = {split: ShardWriter(folder, split, shard_tokens) for split in SPLITS}
    starts = {"train": first_id, "validation": first_id + FIRST_VALIDATION_ID}
    for split, split_lengths in (("train", lengths), ("validation", validation)):
        for length in split_lengths:
            ids = np.arange(starts[split], starts[split] + length, dtype=np.uint32)
            writers[split].append(ids, length)
            starts[split] += length
        writers[split].finish()
    counts = {split: writer.counts for split, writer in writers.items()}
    describe(folder, counts, np.uint32, {}, {})
    return open_shards(folder, folder.name)


def make_data(
    folder: Path,
    lengths: dict[str, Sequence[int]],
    shares: dict[str, float] | None = None,
    shard_tokens: int = 64,
) -> PreparedData:
    """Make domains of these document lengths; domain i has the ids from i * DOMAIN_IDS on."""
    domains = {
        name: make_shards(folder / name, values, first_id=i * DOMAIN_IDS, shard_tokens=shard_tokens)
        for i, (name, values) in enumerate(lengths.items())
    }
    even = {name: 1.0 / len(lengths) for name in lengths}
    token_bytes = np.ones(len(lengths) * DOMAIN_IDS, dtype=np.int64)
    return PreparedData(domains, shares or even, token_bytes)


def use_corpora(monkeypatch: pytest.MonkeyPatch, texts: dict[str, list[str]]) -> list[str]:
    """Put one corpus of these texts in place of the embedded ones of each domain.

    Returns:
        The names of the corpora that were read, as they are read.
    """
    reads: list[str] = []

    def reader(domain: str) -> Callable[[Counter[str]], Iterator[Document]]:
        def read(skipped: Counter[str]) -> Iterator[Document]:
            reads.append(domain)
            for number, text in enumerate(texts[domain]):
                yield Document(f"{domain}/{number}", text, is_code=domain == "code")

        return read

    corpora = {domain: Corpus(domain, "", "", reader(domain)) for domain in texts}
    monkeypatch.setattr("ziphius.data.prepare.CORPORA", corpora)
    return reads
