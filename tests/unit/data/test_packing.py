from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.data.made import make_shards
from ziphius.data.packing import Packing, count_long, count_rows, permutation


@examples(60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    seq_len=st.integers(1, 24),
    seed=st.integers(0, 5),
)
def test_rows_are_the_documents_one_after_another(
    lengths: list[int], seq_len: int, seed: int
) -> None:
    with TemporaryDirectory() as name:
        split = make_shards(Path(name) / "x", lengths, shard_tokens=50).train
        order_N = permutation(len(lengths), seed)
        packing = Packing(split, seq_len, order_N)
        rows = [packing.row(index) for index in range(packing.rows)]
    starts = np.cumsum(lengths) - lengths
    whole = [(n, starts[n] + i) for n in order_N for i in range(lengths[n])]
    assert packing.rows == len(whole) // seq_len
    for index, (ids_T, documents_T) in enumerate(rows):
        expected = whole[index * seq_len : (index + 1) * seq_len]
        assert ids_T.tolist() == [token for _, token in expected]
        # Numbers go up by one exactly where the document changes.
        changes = [a != b for (a, _), (b, _) in pairwise(expected)]
        assert documents_T[0] == 0
        assert np.diff(documents_T).tolist() == changes


def test_documents_that_no_row_holds_are_counted(tmp_path: Path) -> None:
    split = make_shards(tmp_path / "x", [4, 5, 6, 20]).train
    assert (count_long(split, 5), count_rows(split, 5)) == (2, 7)


def test_documents_at_the_edge_of_a_row_are_counted(tmp_path: Path) -> None:
    split = make_shards(tmp_path / "x", [4, 4, 8, 3]).train
    assert Packing(split, 8, np.arange(4)).cut_documents == 0
    assert Packing(split, 6, np.arange(4)).cut_documents == 3


def test_a_row_beyond_the_whole_ones_is_padded(tmp_path: Path) -> None:
    split = make_shards(tmp_path / "x", [3, 2]).train
    ids_T, documents_T = Packing(split, 8, np.arange(2)).row(0)
    assert ids_T.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert documents_T.tolist() == [0, 0, 0, 1, 1, -1, -1, -1]


def test_a_permutation_is_the_same_for_ever() -> None:
    assert permutation(10, 1, 2, 3).tolist() == [8, 1, 9, 3, 7, 5, 2, 0, 4, 6]


def test_permutations_differ_by_every_name() -> None:
    drawn = [
        tuple(permutation(50, *names)) for names in ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2))
    ]
    assert len(set(drawn)) == 4
    assert all(sorted(order) == [*range(50)] for order in drawn)
