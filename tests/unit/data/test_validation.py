from pathlib import Path

import numpy as np

from tests.unit.data.made import make_shards
from ziphius.data.prepare import PreparedData
from ziphius.data.validation import ValidationSet


def made(folder: Path, lengths: dict[str, list[int]], shares: dict[str, float]) -> PreparedData:
    domains = {
        name: make_shards(folder / name, [50], validation=values)
        for name, values in lengths.items()
    }
    return PreparedData(domains, shares, np.ones(1_000_000, dtype=np.int64))


def test_rows_are_shared_out_as_the_mix_is(tmp_path: Path) -> None:
    data = made(tmp_path, {"general": [400], "code": [400]}, {"general": 0.75, "code": 0.25})
    rows = ValidationSet(data, seq_len=8, rows=20).rows
    assert [len(found) for found in rows.values()] == [15, 5]
    assert rows["code"] == [0, 10, 20, 30, 40]


def test_every_row_comes_once_and_always_the_same(tmp_path: Path) -> None:
    data = made(tmp_path, {"general": [90], "code": [40]}, {"general": 0.8, "code": 0.2})
    validation = ValidationSet(data, seq_len=8, rows=100)
    first, second = (list(validation.batches(4)) for _ in range(2))
    assert [b.ids_BT.tolist() for b in first] == [b.ids_BT.tolist() for b in second]
    assert [b.domains for b in first] == [("general",) * n for n in (4, 4, 3)] + [
        ("code",) * n for n in (4, 1)
    ]
    rows = [tuple(row) for b in first if b.domains[0] == "general" for row in b.ids_BT.tolist()]
    assert len(set(rows)) == 11
    assert all(b.loss_mask_BT is None and b.bytes_count == 7 * len(b.domains) for b in first)


def test_text_shorter_than_a_row_is_padded(tmp_path: Path) -> None:
    data = made(tmp_path, {"general": [3, 2]}, {"general": 1.0})
    (batch,) = ValidationSet(data, seq_len=8, rows=4).batches(2)
    assert batch.documents_BT.tolist() == [[0, 0, 0, 1, 1, -1, -1, -1]]
    assert batch.loss_mask_BT is not None
    assert batch.loss_mask_BT.tolist() == [[True] * 5 + [False] * 3]
    assert batch.bytes_count == 3
