import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.ops.targets import shift_left, targets_ahead


@pytest.mark.parametrize(
    ("places", "expected"),
    [(0, [3, 1, 4, 1]), (1, [1, 4, 1, 0]), (3, [1, 0, 0, 0]), (4, [0] * 4), (9, [0] * 4)],
)
def test_shift_left_fills_with_0(places, expected):
    assert shift_left(torch.tensor([[3, 1, 4, 1]]), places).tolist() == [expected]


@examples(50)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    places=st.integers(1, 4),
    packed=st.booleans(),
    chosen=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_position_counts_if_its_target_is_in_its_document_and_chosen(
    lengths, places, packed, chosen, seed
):
    total = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(1, 100, (2, total), generator=generator)
    loss_mask_BT = torch.rand(2, total, generator=generator) < 0.5 if chosen else None
    documents = [index for index, length in enumerate(lengths) for _ in range(length)]
    documents_BT = torch.tensor([documents, documents[::-1]]) if packed else None
    targets_BT, counts_BT = targets_ahead(
        ids_BT, places, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
    )
    for row in range(2):
        for t in range(total):
            target = t + places
            expected = (
                target < total
                and (documents_BT is None or documents_BT[row, t] == documents_BT[row, target])
                and (loss_mask_BT is None or loss_mask_BT[row, target])
            )
            assert counts_BT[row, t] == bool(expected)
            if expected:
                assert targets_BT[row, t] == ids_BT[row, target]


def test_a_document_named_0_does_not_swallow_the_end_of_the_row():
    # the shift fills with 0, which is also the first document's name
    documents_BT = torch.zeros(1, 3, dtype=torch.long)
    _, counts_BT = targets_ahead(torch.ones(1, 3, dtype=torch.long), 1, documents_BT=documents_BT)
    assert counts_BT.tolist() == [[True, True, False]]
