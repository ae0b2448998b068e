import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import RandomRows, Run, moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.train.errors import DivergenceError
from ziphius.train.guard import GuardConfig
from ziphius.train.stage import LossOutput, Term
from ziphius.train.stages.pretrain import Pretrain


class Broken(Pretrain):
    """The loss is multiplied by a factor in the step that is counted as number 2."""

    factor = float("nan")
    asked = 0

    def loss(self, model, batch, progress) -> LossOutput:
        output = super().loss(model, batch, progress)
        self.asked += 1
        if self.asked == 3:
            output.terms["mtp1"].loss_sum = output.terms["mtp1"].loss_sum * self.factor
        return output


def run_of(folder: Path, stage_class: type[Pretrain], **changes) -> Run:
    config = train_config(**changes)
    return Run(folder, config, stage=stage_class(RandomRows(config), moe_config(), config))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path, Broken, log_every=1)
    seen = []
    step = run.recorder.step
    run.recorder.step = lambda record: (step(record), seen.append(weights_of(run)))
    with pytest.raises(DivergenceError, match=r"Step 3: the loss is not finite \(mtp1\)") as error:
        run.go()
    folder = tmp_path / "failed-step-3"
    assert str(folder) in str(error.value)
    assert run.recorder.is_closed
    assert len(seen) == 2
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in weights_of(run).items())
    assert any(not torch.equal(seen[0][name], tensor) for name, tensor in seen[1].items())
    report = json.loads((folder / "report.json").read_text())
    assert report["terms"]["mtp1"] == "nan"
    assert report["losses_before"][:2] == run.recorder.losses
    saved = load_file(folder / "batch.safetensors")
    assert torch.equal(saved["micro-0.ids"], run.stage.batches(2)[0].ids_BT)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


class InfiniteGradient(Pretrain):
    """A finite loss whose gradient is not."""

    def loss(self, model, batch, progress) -> LossOutput:
        output = super().loss(model, batch, progress)
        root = (model.lm_head.weight - model.lm_head.weight.detach()).sum().abs().sqrt()
        return LossOutput(output.terms | {"root": Term(root, "next_token")})


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, InfiniteGradient)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(DivergenceError, match=r"1 gradients are not, the first of lm_head.weight"):
        run.go()
    after = run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    report = json.loads((tmp_path / "failed-step-1" / "report.json").read_text())
    assert report["gradients_not_finite"] == ["lm_head.weight"]


class Jumping(Broken):
    """The main loss is ten times larger in one step."""

    def loss(self, model, batch, progress) -> LossOutput:
        output = Pretrain.loss(self, model, batch, progress)
        self.asked += 1
        if self.asked == 8:
            output.terms["next_token"].loss_sum = output.terms["next_token"].loss_sum * 10.0
        return output


def test_a_jump_stops_the_run_where_asked(tmp_path: Path) -> None:
    guard = GuardConfig(on_spike="stop", spike_window=10)
    run = run_of(tmp_path, Jumping, guard=guard, learning_rate=1e-5)
    with pytest.raises(DivergenceError, match=r"Step 8: the loss jumped to .*on_spike is stop"):
        run.go()
    assert len(run.recorder.losses) == 7
    assert json.loads((tmp_path / "failed-step-8" / "report.json").read_text())["jump_sigma"] > 6.0


def test_long_gradients_are_scaled_down_to_the_clip(tmp_path: Path) -> None:
    moved = {}
    for clip in (0.0, 1e-3):
        config = {"optimizer": {"eps": 1.0, "weight_decay": 0.0}, "budget": "1-steps"}
        run = run_of(tmp_path, Pretrain, clip=clip, warmup_steps=0, **config)
        before = run.model.lm_head.weight.detach().clone()
        run.go()
        norm = run.recorder.steps[0].grad_norm
        # With so large an eps the first step is nearly proportional to the gradient.
        moved[clip] = (run.model.lm_head.weight.detach() - before).norm()
    assert norm > 1e-2
    assert moved[1e-3] / moved[0.0] == pytest.approx(1e-3 / norm, rel=0.1)


class Metrics(Pretrain):
    """Figures that are put together over micro-batches."""

    def loss(self, model, batch, progress) -> LossOutput:
        output = super().loss(model, batch, progress)
        output.metrics = {"rows_sum": float(len(batch.ids_BT)), "top_max": batch.ids_BT[0, 0]}
        return output


def test_metrics_are_added_up_or_the_largest_is_kept(tmp_path: Path) -> None:
    run = run_of(tmp_path, Metrics, budget="1-steps", micro_rows=2)
    run.go()
    terms = run.recorder.steps[0].terms
    assert terms["rows_sum"] == 8.0
    assert terms["top_max"] == max(int(b.ids_BT[0, 0]) for b in run.stage.batches(0))


class NothingCounts(Pretrain):
    """No token is to be learned."""

    def batches(self, step: int) -> list[Batch]:
        batches = super().batches(step)
        return [
            Batch(b.ids_BT, b.documents_BT, torch.zeros_like(b.ids_BT, dtype=torch.bool))
            for b in batches
        ]


def test_a_step_in_which_nothing_counts_has_the_loss_0(tmp_path: Path) -> None:
    run = run_of(tmp_path, NothingCounts, budget="1-steps")
    assert run.go().loss == 0.0


def test_bfloat16_computes_beside_float32_weights(tmp_path: Path) -> None:
    wide = run_of(tmp_path, Pretrain, budget="3-steps")
    narrow = run_of(tmp_path, Pretrain, budget="3-steps", dtype="bfloat16")
    wide.go()
    narrow.go()
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float32}
    assert narrow.recorder.losses != wide.recorder.losses
    assert narrow.recorder.losses == pytest.approx(wide.recorder.losses, rel=0.01)
