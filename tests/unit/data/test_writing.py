from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ziphius.data import writing
from ziphius.data.document import Document, fraction, is_held_out
from ziphius.data.encode import Ids
from ziphius.data.writing import write_shards


def encoded(count: int, tokens: int = 10) -> Iterator[tuple[Document, Ids]]:
    for number in range(count):
        yield Document(f"file {number}", "text"), np.full(tokens, number, dtype=np.uint16)


def rank(number: int) -> float:
    return fraction("held out", f"file {number}")


def split_of(folder: Path, split: str) -> set[int]:
    files = folder.glob(f"{split}-*.bin")
    return {int(i) for file in files for i in np.fromfile(file, dtype=np.uint16)}


def test_a_hundredth_is_held_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ENOUGH_TOKENS", 50)
    counts = write_shards(tmp_path, "x", encoded(1_000))
    expected = {n for n in range(1_000) if is_held_out(Document(f"file {n}", ""))}
    assert split_of(tmp_path, "validation") == expected
    assert split_of(tmp_path, "train") == set(range(1_000)) - expected
    assert counts["train"].documents + counts["validation"].documents == 1_000
    assert counts["train"].bytes == 4 * counts["train"].documents


def test_where_a_hundredth_is_too_little_the_next_in_line_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ENOUGH_TOKENS", 200)
    folders = [tmp_path / str(count) for count in (400, 800)]
    for folder, count in zip(folders, (400, 800), strict=True):
        folder.mkdir()
        write_shards(folder, "x", encoded(count))
    small, large = (split_of(folder, "validation") for folder in folders)
    for found, count in ((small, 400), (large, 800)):
        assert found == set(sorted(range(count), key=rank)[:20])
    # What the larger sample holds out, the smaller one never trained on.
    assert not large & split_of(folders[0], "train")
    for folder, count in zip(folders, (400, 800), strict=True):
        both = split_of(folder, "train"), split_of(folder, "validation")
        assert both[0] | both[1] == set(range(count))
        assert not both[0] & both[1]


def test_no_more_than_a_tenth_is_held_out(tmp_path: Path) -> None:
    counts = write_shards(tmp_path, "x", encoded(50))
    assert counts["validation"].tokens == 50
    assert counts["train"].tokens == 450


def test_documents_that_say_so_are_trained_on(tmp_path: Path) -> None:
    ids = np.zeros(4, dtype=np.uint16)
    pairs = [(Document(str(n), "", held_out=n == 3), ids) for n in range(20)]
    counts = write_shards(tmp_path, "x", pairs)
    assert (counts["train"].documents, counts["validation"].documents) == (19, 1)
