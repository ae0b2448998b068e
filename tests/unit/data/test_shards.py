import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.made import FIRST_VALIDATION_ID, make_shards
from ziphius.core.errors import OutputError
from ziphius.data.errors import DataError
from ziphius.data.shards import ShardWriter, open_shards


def test_every_part_of_every_document_is_found(tmp_path: Path) -> None:
    lengths = [10, 1, 64, 3, 70, 60, 5]
    domain = make_shards(tmp_path / "x", lengths, validation=[7, 2])
    assert len(domain.train.counts.shard_tokens) > 3
    start = 0
    for number, length in enumerate(lengths):
        assert domain.train.tokens(number, 0, length).tolist() == [*range(start, start + length)]
        assert domain.train.tokens(number, length // 2, 1).tolist() == [start + length // 2]
        start += length
    assert domain.validation.tokens(1, 0, 2)[0] == FIRST_VALIDATION_ID + 7


def test_a_document_longer_than_a_shard_stays_whole(tmp_path: Path) -> None:
    domain = make_shards(tmp_path / "x", [5, 200, 5])
    assert domain.train.counts.shard_tokens == [5, 200, 5]


def test_the_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    domain = make_shards(tmp_path / "x", [5])
    assert isinstance(domain.train.tokens(0, 1, 2), np.memmap)


def drop(folder: Path) -> None:
    (folder / "train-00000.bin").unlink()


def cut(folder: Path) -> None:
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-4])


def cut_lengths(folder: Path) -> None:
    path = folder / "train-lengths.npy"
    path.write_bytes(path.read_bytes()[:-8])


def spoil(folder: Path) -> None:
    (folder / "shards.json").write_text("{")


def forget(folder: Path) -> None:
    path = folder / "shards.json"
    description = json.loads(path.read_text())
    del description["splits"]["train"]
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("damage", [drop, cut, cut_lengths, spoil, forget])
def test_damage_is_named(tmp_path: Path, damage: Any) -> None:
    folder = tmp_path / "x"
    make_shards(folder, [5, 6])
    damage(folder)
    with pytest.raises(DataError, match=r"x is damaged .*Remove that folder"):
        open_shards(folder, "x")


def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Path, "open", lambda self, mode: FullFile())
    writer = ShardWriter(tmp_path, "train")
    with pytest.raises(
        OutputError, match=r"No space left on device. Nothing was kept.*ZIPHIUS_CACHE"
    ):
        writer.append(np.zeros(4, dtype=np.uint16), 4)
