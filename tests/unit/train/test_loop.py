import os
import signal
from pathlib import Path

import pytest
import torch

from tests.training import MemoryStore, RandomRows, Run, moe_config, train_config
from ziphius.models.gates.sigmoid import BiasedSigmoidGate
from ziphius.ops import native
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.loop import _SaveClock
from ziphius.train.optim import OPTIMIZERS
from ziphius.train.optimizer_config import OptimizerConfig
from ziphius.train.stage import LossOutput
from ziphius.train.stages.pretrain import Pretrain


def overfit_config(optimizer: str) -> TrainConfig:
    return train_config(
        budget="90-steps",
        learning_rate=0.02,
        optimizer=OptimizerConfig(name=optimizer, weight_decay=0.0),
        mtp={"early": 0.0, "late": 0.0},
    )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_eight_rows_are_learned_by_heart(tmp_path: Path, name: str) -> None:
    config = overfit_config(name)
    run = Run(tmp_path, config, moe_config(aux_loss_alpha=1e-4))
    run.stage.loader = RandomRows(config, repeat=True)
    assert run.go().loss == run.recorder.losses[-1]
    assert run.recorder.losses[0] > 4.0
    assert run.recorder.losses[-1] < 0.1


def test_two_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    first, second = (Run(tmp_path, train_config(ema_decay=0.9)) for _ in range(2))
    assert first.go().loss == second.go().loss
    assert first.recorder.losses == second.recorder.losses
    assert_same_weights(first, second)
    saved = first.store.saved[-1]
    trained, averaged = (saved[part]["lm_head.weight"] for part in ("model", "ema"))
    start = Run(tmp_path, train_config()).model.lm_head.weight
    assert 0.0 < (averaged - start).norm() < (trained - start).norm()
    other = Run(tmp_path, train_config(ema_decay=0.9, seed=1))
    other.go()
    assert other.recorder.losses != first.recorder.losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_goes_on_equals_one_that_never_stopped(tmp_path: Path, optimizer: str) -> None:
    config = train_config(ema_decay=0.9, optimizer={"name": optimizer})
    whole = Run(tmp_path, config)
    whole.go()
    store = MemoryStore()
    first = Run(tmp_path, config, store=store)
    stop_at(first, 4)
    result = first.go()
    assert (result.step, result.stopped_by, result.is_complete) == (4, signal.SIGTERM, False)
    second = Run(tmp_path, config, store=store)
    assert second.go().is_complete
    assert second.recorder.resumed_at == [4]
    assert first.recorder.losses + second.recorder.losses == whole.recorder.losses
    assert_same_weights(second, whole)
    assert store.saved[-1]["tokens_seen"] == whole.store.saved[-1]["tokens_seen"] == 10 * 8 * 16


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    store = MemoryStore()
    Run(tmp_path, train_config(), store=store).go()
    again = Run(tmp_path, train_config(), store=store)
    result = again.go()
    assert (result.step, result.loss, result.is_complete) == (10, None, True)
    assert again.recorder.steps == []
    assert len(store.saved) == 1


def test_slow_kernels_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Run(tmp_path, train_config(budget="1-steps"))
    quick.go()
    assert quick.recorder.warnings == []
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    monkeypatch.setattr(native, "status", lambda: "off: no compiler")
    slow = Run(tmp_path, train_config(budget="1-steps"))
    slow.go()
    assert slow.recorder.warnings == ["Training is slow here: native kernels are off: no compiler."]


@pytest.mark.parametrize("budget", ["9-steps", "1024-tokens", "1s"])
def test_a_budget_below_what_is_done_is_refused(tmp_path: Path, budget: str) -> None:
    store = MemoryStore()
    Run(tmp_path, train_config(), store=store).go()
    store.saved[-1]["seconds"] = 2.0
    again = Run(tmp_path, train_config(budget=budget), store=store)
    with pytest.raises(TrainingError, match=rf"has done 10 steps in 2 s.* --budget {budget}"):
        again.go()
    assert (again.recorder.resumed_at, len(store.saved)) == ([], 1)


def test_records_hold_what_happened(tmp_path: Path) -> None:
    run = Run(tmp_path, train_config(budget="4-steps", micro_batch_size=2, warmup_steps=0))
    result = run.go()
    record = run.recorder.steps[1]
    assert (record.step, record.tokens, record.bytes_count) == (2, 8 * 16, 2 * 8 * 16)
    assert (record.progress, record.learning_rate < 3e-3) == (0.5, True)
    assert list(record.terms) == ["next_token", "mtp1", "balance"]
    assert set(record.counts_by_layer) == set(record.gate_entropy_by_layer) == {1, 2}
    assert all(sum(counts) == 8 * 16 * 2 for counts in record.counts_by_layer.values())
    assert all(0.0 < entropy <= 2.08 for entropy in record.gate_entropy_by_layer.values())
    parts = sum(norm**2 for norm in record.grad_norm_by_part.values())
    assert record.grad_norm == pytest.approx(parts**0.5)
    assert record.seconds > 0.0
    assert run.recorder.is_closed
    assert (result.tokens, result.step, result.total_steps) == (4 * 8 * 16, 4, 4)


def test_records_come_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, train_config(log_every=4))
    run.go()
    assert [record.step for record in run.recorder.steps] == [4, 8, 10]


def test_checkpoints_come_after_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, train_config(save_every="4-steps"))
    run.go()
    assert [saved["step"] for saved in run.store.saved] == [4, 8, 10]


def test_router_biases_move_by_the_rate_until_their_share_of_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, train_config(bias_rate=0.01, bias_until=0.05))
    run.go()
    for layer_idx, counts in run.recorder.steps[0].counts_by_layer.items():
        gate = run.model.model.layers[layer_idx].mlp.gate
        assert isinstance(gate, BiasedSigmoidGate)
        counts_E = torch.tensor(counts, dtype=torch.float32)
        # Only the first of ten steps moved them.
        expected_E = 0.01 * (counts_E.mean() - counts_E).sign()
        assert expected_E.any()
        assert torch.equal(gate.e_score_correction_bias, expected_E)


class Measured(Pretrain):
    """Validation that shows on which weights and in which mode it runs."""

    def validate(self, model) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"loss": float(model.lm_head.weight.sum())}


@pytest.mark.parametrize("averaged", [False, True])
def test_held_out_text_is_measured_at_the_start_in_between_and_at_the_end(
    tmp_path: Path, averaged: bool
) -> None:
    config = train_config(validate_every=4, ema_decay=0.5, validate_ema=averaged)
    stage = Measured(RandomRows(config), moe_config(), config)
    run = Run(tmp_path, config, stage=stage)
    result = run.go()
    assert [record.step for record in run.recorder.validations] == [0, 4, 8, 10]
    last = run.recorder.validations[-1].figures
    assert result.validation == last == run.store.saved[-1]["validation"]
    weights = run.store.saved[-1]["ema" if averaged else "model"]
    assert last["loss"] == float(weights["lm_head.weight"].sum())
    assert run.model.training


def test_a_budget_of_time_becomes_steps_that_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, train_config(budget="1s"))
    result = run.go()
    assert result.is_complete
    assert result.total_steps > 1
    assert run.recorder.steps[0].progress == 0.0
    assert run.recorder.steps[-1].progress == 1.0
    assert run.recorder.steps[-1].eta_s == 0.0
    plan = run.store.saved[-1]["plan"]
    assert (plan["budget"], plan["total_steps"]) == ("1s", result.total_steps)
    assert 0.0 < plan["planned_s"] < 1.2
    stopped = run.store.saved[-1] | {"step": result.step - 1}
    store = MemoryStore()
    store.saved.append(stopped)
    again = Run(tmp_path, train_config(budget="1s"), store=store).go()
    assert (again.step, again.total_steps) == (result.total_steps, result.total_steps)


def test_a_longer_time_keeps_the_learning_rate_of_where_it_goes_on(tmp_path: Path) -> None:
    store = MemoryStore()
    Run(tmp_path, train_config(budget="20-steps"), store=store).go()
    plan = {"budget": "20s", "total_steps": 20, "planned_s": 18.0}
    store.saved[-1] |= {"plan": plan, "seconds": 20.0}
    second = Run(tmp_path, train_config(budget="24s"), store=store)
    stop_at(second, 21)
    second.go()
    # Five sixths of a cosine are done; the full rate would be that of a run that just begins.
    assert second.recorder.steps[0].step == 21
    assert second.recorder.steps[0].learning_rate < 0.2 * 3e-3


def test_the_first_checkpoint_comes_early_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ziphius.train.loop.time.perf_counter", lambda: now[0])
    clock = _SaveClock("5m")
    clock.saved(0)
    for later, is_due in ((29.0, False), (30.0, True)):
        now[0] = 100.0 + later
        assert clock.is_due(7) is is_due
    clock.saved(7)
    now[0] = 130.0 + 299.0
    assert not clock.is_due(9)
    now[0] += 1.0
    assert clock.is_due(9)
    shorter = _SaveClock("2s")
    shorter.saved(0)
    now[0] += 2.0
    assert shorter.is_due(1)


class Jumping(Pretrain):
    """A loss that is a hundred times larger in step 60."""

    asked = 0

    def loss(self, model, batch, progress) -> LossOutput:
        output = super().loss(model, batch, progress)
        self.asked += 1
        for term in output.terms.values():
            term.loss_sum = term.loss_sum * (100.0 if self.asked == 61 else 1.0)
        return output


def test_a_jump_of_the_loss_is_told_and_kept(tmp_path: Path) -> None:
    config = train_config(budget="70-steps", learning_rate=1e-5)
    run = Run(tmp_path, config, stage=Jumping(RandomRows(config), moe_config(), config))
    result = run.go()
    assert result.is_complete
    assert [spike["step"] for spike in result.spikes] == [60]
    assert len(run.recorder.warnings) == 1
    assert run.recorder.warnings[0].startswith("Step 61: the loss jumped to")


def stop_at(run: Run, step: int) -> None:
    """Send this process a signal while a step is going on."""
    batches = run.stage.batches

    def batches_with_a_signal(index: int):
        if index == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(index)

    run.stage.batches = batches_with_a_signal


def assert_same_weights(first: Run, second: Run) -> None:
    for saved, expected in (
        (first.store.saved[-1][name], second.store.saved[-1][name]) for name in ("model", "ema")
    ):
        assert all(torch.equal(saved[name], expected[name]) for name in expected)


class Settings(Pretrain):
    """Notes torch's settings while a step is going on."""

    seen: tuple[bool, str] | None = None

    def loss(self, model, batch, progress) -> LossOutput:
        matrices = torch.backends.mkldnn.matmul
        self.seen = torch.are_deterministic_algorithms_enabled(), matrices.fp32_precision
        return super().loss(model, batch, progress)


@pytest.mark.parametrize("deterministic", [True, False])
def test_torchs_settings_are_the_runs_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    matrices = torch.backends.mkldnn.matmul
    before = torch.are_deterministic_algorithms_enabled(), matrices.fp32_precision

    def prefer() -> bool:
        matrices.fp32_precision = "bf16"
        return True

    monkeypatch.setattr("ziphius.train.loop.prefer_onednn_for_float32", prefer)
    config = train_config(budget="1-steps", deterministic=deterministic)
    stage = Settings(RandomRows(config), moe_config(), config)
    Run(tmp_path, config, stage=stage).go()
    assert stage.seen == (deterministic, "bf16")
    assert (torch.are_deterministic_algorithms_enabled(), matrices.fp32_precision) == before
