"""`distill/logits.py`: the formula in loops, its gradient, its cuts, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import build, gradients, grouped_config, latent_config
from tests.training import Run, moe_config, train_config
from tests.unit.train.stages.test_sft import conversations
from ziphius.core.errors import ConfigError
from ziphius.data.conversations import ConversationLoader, validation_batches
from ziphius.distill import logits as module
from ziphius.distill.logits import LogitConfig, LogitDistillation, summed_kl
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import next_token_loss
from ziphius.models.model import Model
from ziphius.ops.targets import targets_ahead
from ziphius.train.config import TrainConfig


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and heads of a student of width 6 and a teacher of width 9; 11 tokens."""
    student, teacher = draw(7, 6), draw(7, 9, seed=1)
    return student, draw(11, 6, seed=2), teacher, draw(11, 9, seed=3)


def stage(
    config: TrainConfig,
    *,
    teacher: Model | None = None,
    logits: LogitConfig | None = None,
    student: ModelConfig | None = None,
    micro_batch_size: int | None = None,
    **options: Any,
) -> LogitDistillation:
    learned = conversations(8)
    loader = ConversationLoader(
        learned,
        seed=config.seed,
        epochs=1_000,
        rows=config.batch_sizes,
        micro_batch_size=micro_batch_size or config.resolved_micro_batch_size(1),
    )
    return LogitDistillation(
        loader,
        student or grouped_config(),
        config,
        teacher=teacher or build(moe_config(), seed=1),
        logits=logits or LogitConfig(),
        data_fingerprint=loader.fingerprint,
        **options,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_sum_is_the_formula(temperature: float) -> None:
    student_XD, student_WD, teacher_XD, teacher_WD = heads()
    expected = 0.0
    for position in range(7):
        own = (student_WD @ student_XD[position] / temperature).double()
        wanted = (teacher_WD @ teacher_XD[position] / temperature).double()
        own, wanted = own.exp() / own.exp().sum(), wanted.exp() / wanted.exp().sum()
        for p, q in zip(wanted.tolist(), own.tolist(), strict=True):
            expected += temperature**2 * p * float(torch.tensor(p / q).log())
    found = summed_kl(student_XD, student_WD, teacher_XD, teacher_WD, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block", [1, 33, 4 * 2**20])
def test_the_gradient_is_that_of_plain_autograd(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """In blocks of one, of three and of all positions."""
    monkeypatch.setattr(module, "LOGITS_BLOCK", block)
    student_XD, student_WD, teacher_XD, teacher_WD = heads()
    leaves = [student_XD.requires_grad_(), student_WD.requires_grad_()]
    ours = torch.autograd.grad(
        3 * summed_kl(student_XD, student_WD, teacher_XD, teacher_WD, 2.0), leaves
    )
    own = torch.log_softmax(student_XD @ student_WD.t() / 2.0, -1)
    wanted = torch.log_softmax(teacher_XD @ teacher_WD.t() / 2.0, -1)
    plain = 3 * 4.0 * torch.nn.functional.kl_div(own, wanted, reduction="sum", log_target=True)
    for mine, theirs in zip(ours, torch.autograd.grad(plain, leaves), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)
        assert mine.norm() > 1


def test_no_logits_of_all_positions_ever_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_BLOCK", 2 * 11)
    seen: list[int] = []
    plain = torch.nn.functional.linear

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(len(x) * len(weight))
        return plain(x, weight)

    monkeypatch.setattr(module.F, "linear", watched)
    summed_kl(*heads(), 1.0)
    assert len(seen) == 16  # four products for each of four blocks
    assert max(seen) <= 11 * 6


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    teacher = build(grouped_config(), seed=1)
    distilled = stage(train_config(), teacher=teacher, logits=LogitConfig(hard_share=0.0))
    student = build(grouped_config(), seed=1)
    [batch] = distilled.batches(0)
    output = distilled.loss(student, batch, progress=0.0)
    [term] = output.terms.values()
    assert term.loss_sum.item() == pytest.approx(0.0, abs=1e-5)
    term.loss_sum.backward()
    assert all(grad.abs().max() < 1e-4 for grad in gradients(student).values())
    other = distilled.loss(build(grouped_config(), seed=2), batch, progress=0.0)
    assert other.terms["kl"].loss_sum.item() > 1


def test_terms_and_weights_are_sums_over_what_assistants_wrote() -> None:
    distilled = stage(train_config(), logits=LogitConfig(temperature=2.0, hard_share=0.25))
    student, teacher = build(grouped_config()), distilled.teacher
    [batch] = distilled.batches(0)
    terms = distilled.loss(student, batch, progress=0.0).terms
    assert list(terms) == ["kl", "next_token"]
    assert [term.coefficient for term in terms.values()] == [0.75, 0.25]
    ids_BT, documents_BT = batch.ids_BT, batch.documents_BT
    _, counts_BT = targets_ahead(
        ids_BT, 1, documents_BT=documents_BT, loss_mask_BT=batch.loss_mask_BT
    )
    expected = 0.0
    states = [
        model(ForwardBatch(ids_BT, documents_BT=documents_BT)) for model in (student, teacher)
    ]
    own, wanted = (
        torch.log_softmax(model.logits(state.hidden_BTD) / 2.0, -1)
        for model, state in zip((student, teacher), states, strict=True)
    )
    for row, place in counts_BT.nonzero().tolist():
        gap = wanted[row, place] - own[row, place]
        expected += 4.0 * (wanted[row, place].exp() * gap).sum().item()
    assert terms["kl"].loss_sum.item() == pytest.approx(expected, rel=1e-4)
    hard = next_token_loss(
        student, states[0], ids_BT, documents_BT=documents_BT, loss_mask_BT=batch.loss_mask_BT
    )
    assert terms["next_token"].loss_sum.item() == pytest.approx(hard.loss_sum.item(), rel=1e-5)
    assert distilled.weights(batch)["next_token"] == int(counts_BT.sum()) == int(hard.tokens)


def test_the_teacher_is_frozen_and_in_evaluation_mode(tmp_path: Path) -> None:
    teacher = build(moe_config(), seed=1).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run = Run(
        tmp_path, train_config(), grouped_config(), stage=stage(train_config(), teacher=teacher)
    )
    run.go()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], now) for name, now in teacher.state_dict().items())


def test_any_cut_into_micro_batches_is_the_same_step(tmp_path: Path) -> None:
    weights = []
    for micro_batch_size in (4, 2, 1):
        config = train_config(
            budget="3-steps", global_batch_size=4, micro_batch_size=micro_batch_size
        )
        run = Run(
            tmp_path,
            config,
            grouped_config(),
            stage=stage(config, micro_batch_size=micro_batch_size),
        )
        run.go()
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    for other in weights[1:]:
        assert torch.allclose(weights[0], other, atol=2e-5)


def test_a_student_comes_near_its_teacher(tmp_path: Path) -> None:
    config = train_config(
        budget="80-steps", global_batch_size=4, learning_rate=0.01, validate_every=80
    )
    held_out = list(validation_batches(conversations(8), 4))
    distilled = stage(config, logits=LogitConfig(hard_share=0.0), validation=held_out)
    run = Run(tmp_path, config, grouped_config(), stage=distilled)
    result = run.go()
    first, last = (record.figures for record in run.recorder.validations)
    assert last["kl"] < 0.3 * first["kl"]
    assert {"loss", "bits_per_byte", "kl"} <= result.validation.keys()
    assert run.recorder.losses[-1] < 0.3 * run.recorder.losses[0]


def test_the_fingerprint_names_teacher_and_mixture() -> None:
    config = train_config()
    prints = {
        stage(config).fingerprint(),
        stage(config, teacher=build(moe_config(), seed=2)).fingerprint(),
        stage(config, logits=LogitConfig(temperature=2.0)).fingerprint(),
        stage(config, logits=LogitConfig(hard_share=0.1)).fingerprint(),
    }
    assert len(prints) == 4
    assert stage(config).fingerprint() in prints


@pytest.mark.parametrize(
    ("student", "changes", "message"),
    [
        (grouped_config(vocab_size=60), {}, "60 tokens and the teacher 61"),
        (moe_config(num_nextn_predict_layers=0), {}, "The student has experts"),
        (latent_config(num_nextn_predict_layers=1), {}, "MTP layers"),
        (grouped_config(), {"seq_len": 5_000}, "the teacher is made for 4096"),
        (grouped_config(), {"z_loss": 0.1}, "z_loss has no effect"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    student: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(train_config(**changes), student=student)
