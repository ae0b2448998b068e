"""Any way to cut a step into micro-batches, or documents into rows, is the same step."""

import pytest
import torch

from tests.tiny import build, gradients
from tests.training import RandomRows, moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.dist.world import ALONE
from ziphius.models.config import ModelConfig
from ziphius.train.guard import Guard
from ziphius.train.optim import build_optimizer
from ziphius.train.stages.language import NEXT, language_losses, mtp_term
from ziphius.train.stages.pretrain import Pretrain
from ziphius.train.step import StepOutcome, Stepper

CPU = torch.device("cpu")


def one_step(
    tmp_path, micro_batch_size: int, config: ModelConfig
) -> tuple[StepOutcome, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what a step measured, its gradients before clipping, and the buffers after it."""
    train = train_config(global_batch_size=8, clip=0.0, z_loss=0.01)
    model = build(config)
    optimizer = build_optimizer(model, train.optimizer)
    stepper = Stepper(
        Pretrain(RandomRows(train, micro_batch_size=micro_batch_size), config, train),
        model,
        optimizer,
        train,
        guard=Guard(train.guard),
        ema=None,
        world=ALONE,
        device=CPU,
        dtype=torch.float32,
        folder=tmp_path,
    )
    outcome = stepper.run(0, progress=0.0, learning_rate=0.0)
    return outcome, gradients(model), dict(model.named_buffers())


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_eight_micro_batches_are_one_batch(tmp_path, micro_batch_size: int) -> None:
    whole, expected, biases = one_step(tmp_path, 8, moe_config())
    cut, actual, cut_biases = one_step(tmp_path, micro_batch_size, moe_config())
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.terms == pytest.approx(whole.terms, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    assert cut.counts_by_layer == whole.counts_by_layer
    assert cut.gate_entropy_by_layer == pytest.approx(whole.gate_entropy_by_layer, rel=1e-6)
    assert (cut.tokens, cut.bytes_count) == (whole.tokens, whole.bytes_count)
    assert set(biases) == set(cut_biases) != set()
    assert all(torch.equal(cut_biases[name], bias) for name, bias in biases.items())
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm()
        assert difference <= 1e-6 * gradient.norm() + 1e-7 * total, name


def test_documents_in_one_row_or_in_rows_of_their_own() -> None:
    # Without balance, which is counted by rows.
    model = build(moe_config(aux_loss_alpha=0.0))
    train = train_config()
    ids_BT, documents_BT = RandomRows(train).row(5)
    packed = Batch(ids_BT[None], documents_BT[None])
    assert documents_BT[-1] > 0
    alone = [
        Batch(ids_BT[documents_BT == number][None], torch.zeros(1, size, dtype=torch.int64))
        for number, size in enumerate(documents_BT.bincount().tolist())
        if size
    ]
    sums, grads = [], []
    for batches in ([packed], alone):
        total = dict.fromkeys((NEXT, mtp_term(1)), 0.0)
        for batch in batches:
            terms = language_losses(model, batch, train, progress=0.0).terms
            sum(term.loss_sum for term in terms.values()).backward()
            for name, term in terms.items():
                total[name] += term.loss_sum.item()
        sums.append(total)
        grads.append(gradients(model))
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, rtol=1e-4, atol=1e-5)
