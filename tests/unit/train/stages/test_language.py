import pytest
import torch

from tests.tiny import V2_EXPERTS, build, grouped_config, latent_config, random_ids
from tests.training import moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.models.balance import balance_loss
from ziphius.ops.logprobs import token_logprobs
from ziphius.train.stages.language import language_losses, language_weights


def batch_of(rows: int = 2, length: int = 12, *, counted: bool = False) -> Batch:
    ids_BT = random_ids(rows, length, 61)
    documents_BT = (torch.arange(length) >= 5).long().expand(rows, -1).contiguous()
    counted_BT = torch.arange(length).expand(rows, -1) % 3 == 0 if counted else None
    return Batch(ids_BT, documents_BT, counted_BT)


def test_weights_count_targets_within_documents_and_rows() -> None:
    # Documents of 5 and 7 tokens in each of two rows.
    assert language_weights(batch_of(), moe_config()) == {
        "next_token": 2 * (4 + 6),
        "mtp1": 2 * (3 + 5),
        "sequences": 2,
    }
    # Learned are the tokens 0, 3, 6 and 9 of a row; 0 has no predecessor.
    assert language_weights(batch_of(counted=True), grouped_config()) == {
        "next_token": 2 * 3,
        "sequences": 2,
    }


@pytest.mark.parametrize("counted", [False, True])
def test_sums_and_weights_fit_together(counted: bool) -> None:
    model, batch = build(moe_config()), batch_of(counted=counted)
    output = language_losses(model, batch, train_config(z_loss=0.1), progress=0.0)
    weights = language_weights(batch, model.config)
    with torch.no_grad():
        hidden_BTD = model(batch.ids_BT, documents_BT=batch.documents_BT).hidden_BTD
        logits_BTW = model.logits(hidden_BTD)
    nats, squares, count = 0.0, 0.0, 0
    for row in range(2):
        for i in range(11):
            is_learned = not counted or (i + 1) % 3 == 0
            if i + 1 != 5 and is_learned:
                nats -= float(token_logprobs(logits_BTW[row, i], batch.ids_BT[row, i + 1]))
                squares += float(logits_BTW[row, i].logsumexp(-1)) ** 2
                count += 1
    assert weights["next_token"] == count
    assert output.terms["next_token"].loss_sum.item() == pytest.approx(nats, rel=1e-5)
    assert output.terms["z"].loss_sum.item() == pytest.approx(squares, rel=1e-5)
    assert output.terms["z"].coefficient == 0.1


def test_lambda_is_shared_by_the_depths_and_falls() -> None:
    model = build(moe_config(num_nextn_predict_layers=2))
    for progress, weight in ((0.0, 0.3), (0.9, 0.1)):
        terms = language_losses(model, batch_of(), train_config(), progress).terms
        assert [terms[name].coefficient for name in ("mtp1", "mtp2")] == [weight / 2] * 2
        assert [terms[name].weight_key for name in ("mtp1", "mtp2")] == ["mtp1", "mtp2"]


def test_balance_counts_rows_and_covers_the_mtp_layer() -> None:
    model, batch = build(moe_config()), batch_of()
    output = language_losses(model, batch, train_config(), 0.0)
    term = output.terms["balance"]
    assert (term.weight_key, term.coefficient) == ("sequences", 1.0)
    assert sorted(output.routings) == [1, 2]
    expected = balance_loss(model.config, output.routings, 2)
    assert term.loss_sum.item() == pytest.approx(2 * expected.item())


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (grouped_config(), ["next_token"]),
        (moe_config(aux_loss_alpha=0.0), ["next_token", "mtp1"]),
        (latent_config(**V2_EXPERTS, device_loss_alpha=0.05), ["next_token", "balance"]),
    ],
)
def test_a_model_has_the_terms_of_its_parts(config, names: list[str]) -> None:
    output = language_losses(build(config), batch_of(), train_config(), 0.0)
    assert list(output.terms) == names
