import torch

from ziphius.data.batch import Batch


def test_a_batch_moves_with_everything_it_has() -> None:
    ids_BT = torch.arange(6).reshape(2, 3)
    batch = Batch(ids_BT, torch.zeros_like(ids_BT), ids_BT > 2, 7, ("code", "books"))
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.ids_BT, moved.documents_BT)} == {"meta"}
    assert moved.loss_mask_BT is not None
    assert moved.loss_mask_BT.device.type == "meta"
    assert (moved.bytes_count, moved.domains) == (7, ("code", "books"))


def test_a_batch_that_counts_everything_stays_so() -> None:
    ids_BT = torch.zeros(1, 1, dtype=torch.int64)
    assert Batch(ids_BT, ids_BT).to(torch.device("cpu")).loss_mask_BT is None


def test_padding_is_no_token() -> None:
    documents_BT = torch.tensor([[0, 0, 1], [0, -1, -1]])
    assert Batch(torch.zeros_like(documents_BT), documents_BT).tokens == 4
