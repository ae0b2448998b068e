import pytest
import torch
import torch.nn.functional as F

from tests.tiny import V3_EXPERTS, build, latent_config, random_ids
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import (
    TokenLoss,
    mtp_loss_mean,
    mtp_losses,
    next_token_loss,
)

DOCUMENTS = [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 2, 2]]


@pytest.fixture(scope="module")
def model():
    return build(latent_config(num_nextn_predict_layers=2, **V3_EXPERTS))


@pytest.fixture
def ids_BT(model):
    return random_ids(2, 9, model.config.vocab_size)


def counted():
    return torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) < 0.6


def reference(model, hidden_BTD, ids_BT, places, documents=None, loss_mask_BT=None):
    """Cross entropies one position at a time."""
    losses = []
    for row in range(2):
        for t in range(9 - places):
            same = documents is None or documents[row][t] == documents[row][t + places]
            if same and (loss_mask_BT is None or loss_mask_BT[row, t + places]):
                logits_W = model.logits(hidden_BTD[row, t])
                losses.append(F.cross_entropy(logits_W, ids_BT[row, t + places]))
    return torch.stack(losses)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("loss_mask_BT", [None, counted()], ids=["all", "counted"])
def test_next_token_loss_is_the_sum_of_cross_entropies(model, ids_BT, documents, loss_mask_BT):
    documents_BT = None if documents is None else torch.tensor(documents)
    output = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
    loss = next_token_loss(
        model, output, ids_BT, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
    )
    expected = reference(model, output.hidden_BTD, ids_BT, 1, documents, loss_mask_BT)
    torch.testing.assert_close(loss.loss_sum, expected.sum())
    assert int(loss.tokens) == len(expected)
    torch.testing.assert_close(loss.mean, expected.mean())


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("loss_mask_BT", [None, counted()], ids=["all", "counted"])
def test_each_depth_predicts_one_token_further(model, ids_BT, documents, loss_mask_BT):
    documents_BT = None if documents is None else torch.tensor(documents)
    output = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
    losses = mtp_losses(model, output, ids_BT, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT)
    states = model.predict_mtp(output, ids_BT)
    assert len(losses) == len(states) == 2
    for depth, (loss, state_BTD) in enumerate(zip(losses, states, strict=True), 1):
        expected = reference(model, state_BTD, ids_BT, depth + 1, documents, loss_mask_BT)
        torch.testing.assert_close(loss.loss_sum, expected.sum())
        assert int(loss.tokens) == len(expected)


def test_the_depths_mean_is_over_depths_not_tokens():
    losses = [
        TokenLoss(torch.tensor(12.0), torch.tensor(4)),
        TokenLoss(torch.tensor(5.0), torch.tensor(1)),
    ]
    assert mtp_loss_mean(losses).item() == (3.0 + 5.0) / 2


def test_a_batch_in_which_nothing_counts_has_loss_0_and_no_nan(model, ids_BT):
    output = model(ids_BT)
    loss = next_token_loss(model, output, ids_BT, loss_mask_BT=torch.zeros(2, 9, dtype=torch.bool))
    assert int(loss.tokens) == 0
    assert loss.mean.item() == 0.0
    loss.mean.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_a_text_of_one_token_has_no_target(model):
    ids_BT = random_ids(1, 1, model.config.vocab_size)
    output = model(ids_BT)
    assert int(next_token_loss(model, output, ids_BT).tokens) == 0
    assert [int(loss.tokens) for loss in mtp_losses(model, output, ids_BT)] == [0, 0]
