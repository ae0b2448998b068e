import pytest
import torch

from tests.tiny import V2_EXPERTS, build, grouped_config, latent_config, random_ids
from tests.training import RandomRows, moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.dist.world import World
from ziphius.models.balance import balance_loss
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model
from ziphius.ops.logprobs import token_logprobs
from ziphius.train.stages.language import LanguageStage, language_losses, language_weights


def batch_of(rows: int = 2, length: int = 12, *, counted: bool = False) -> Batch:
    ids_BT = random_ids(rows, length, 61)
    documents_BT = (torch.arange(length) >= 5).long().expand(rows, -1).contiguous()
    loss_mask_BT = torch.arange(length).expand(rows, -1) % 3 == 0 if counted else None
    return Batch(ids_BT, documents_BT, loss_mask_BT)


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
        hidden_BTD = model(ForwardBatch(batch.ids_BT, documents_BT=batch.documents_BT)).hidden_BTD
        logits_BTW = model.logits(hidden_BTD)
    nats, squares, count = 0.0, 0.0, 0
    for row in range(2):
        for i in range(11):
            in_loss = not counted or (i + 1) % 3 == 0
            if i + 1 != 5 and in_loss:
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


def test_a_row_of_padding_is_no_sequence_and_padding_trains_no_router() -> None:
    config = moe_config(num_nextn_predict_layers=0)
    ids_BT, documents_BT = random_ids(3, 12, 61), torch.zeros(3, 12, dtype=torch.int64)
    documents_BT[:, 8:] = -1
    documents_BT[2] = -1
    padded = Batch(ids_BT, documents_BT, documents_BT >= 0)
    alone = Batch(ids_BT[:2, :8], documents_BT[:2, :8])
    assert language_weights(padded, config) == language_weights(alone, config)
    losses, router = [], []
    for batch in (padded, alone):
        model = build(config)
        output = language_losses(model, batch, train_config(), progress=0.0)
        output.terms["balance"].loss_sum.backward()
        losses.append(output.terms["balance"].loss_sum)
        router.append(model.get_parameter("model.layers.1.mlp.gate.weight").grad)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(router[0], router[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 12])
def test_capacity_exempts_the_same_rows_in_any_micro_batches(micro_batch_size: int) -> None:
    experts = V2_EXPERTS | {"capacity_factor": 0.01}
    config = latent_config(model_type="deepseek_v2", **experts)
    training = train_config(global_batch_size=12, micro_batch_size=micro_batch_size)
    stage = LanguageRows(RandomRows(training, micro_batch_size=micro_batch_size), config, training)
    model = build(config).train()
    exempt: list[int] = []
    for batch in stage.batches(1):
        [routing] = stage.loss(model, batch, progress=0.0).routings.values()
        kept_BX = (routing.experts_MK < 8).view(len(batch.ids_BT), -1)
        exempt += [batch.first_row + row for row in range(len(kept_BX)) if kept_BX[row].all()]
    assert exempt == [0, 10]


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_are_counted_over_micro_batches_and_ranks(rank: int) -> None:
    training = train_config(global_batch_size=8, micro_batch_size=2)
    stage = LanguageRows(
        RandomRows(training, micro_batch_size=2), moe_config(), training, world=World(rank, 2, rank)
    )
    assert [batch.first_row for batch in stage.batches(3)] == [2 * rank, 4 + 2 * rank]


class LanguageRows(LanguageStage):
    """A stage that is never measured."""

    name = "rows"

    def validate(self, model: Model) -> dict[str, float]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return ""
