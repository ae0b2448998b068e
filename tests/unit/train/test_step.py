import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import MemoryStore, RandomRows, Run, moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.dist.world import World
from ziphius.train.errors import DivergenceError
from ziphius.train.guard import GuardConfig
from ziphius.train.stage import LossOutput, Term
from ziphius.train.stages.language import NEXT
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
    run = run_of(tmp_path, Metrics, budget="1-steps", micro_batch_size=2)
    run.go()
    terms = run.recorder.steps[0].terms
    assert terms["rows_sum"] == 8.0
    assert terms["top_max"] == max(int(b.ids_BT[0, 0]) for b in run.stage.batches(0))


class Gaps(Pretrain):
    """In the steps counted as 3 and 4 no token is to be learned; in the others some are."""

    empty = (2, 3)
    micros_left = 0
    """Micro-batches of an empty step that do teach."""

    def batches(self, step: int) -> list[Batch]:
        batches = super().batches(step)
        kept = self.micros_left if step in self.empty else len(batches)
        nothing = [
            Batch(b.ids_BT, b.documents_BT, torch.zeros_like(b.ids_BT, dtype=torch.bool))
            for b in batches[kept:]
        ]
        return batches[:kept] + nothing


def moving(saved: dict) -> dict[str, torch.Tensor]:
    """Every tensor that a step may move: weights, router biases, optimizer, averages."""
    found = {f"model {name}": tensor for name, tensor in saved["model"].items()}
    for number, state in saved["optimizer"]["state"].items():
        found |= {f"optimizer {number} {name}": tensor for name, tensor in state.items()}
    return found | {f"ema {name}": tensor for name, tensor in saved["ema"].items()}


def still(before: dict, after: dict) -> list[bool]:
    first, second = moving(before), moving(after)
    assert first.keys() == second.keys()
    return [torch.equal(tensor, second[name]) for name, tensor in first.items()]


GAPS = {
    "budget": "6-steps",
    "save_every": "1-steps",
    "ema_decay": 0.9,
    "warmup_steps": 0,
    "schedule": "constant",
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_in_which_nothing_counts_moves_nothing(tmp_path: Path, optimizer: str) -> None:
    run = run_of(tmp_path, Gaps, optimizer={"name": optimizer}, **GAPS)
    result = run.go()
    assert [record.is_skipped for record in run.recorder.steps] == [False, False, True, True] + [
        False
    ] * 2
    assert result.skipped_steps == 2
    _, second, third, fourth, fifth, _ = run.store.saved
    assert all(still(second, third))
    assert all(still(third, fourth))
    # Balance loss, momentum and decay would have moved nearly all of it.
    assert sum(still(fourth, fifth)) < 0.1 * len(moving(fifth))
    assert run.recorder.losses[2:4] == [0.0, 0.0]
    assert 0.0 not in fifth["guard"]["window"]


@pytest.mark.parametrize("micros_left", [1, 0])
def test_one_micro_batch_that_teaches_makes_a_step(tmp_path: Path, micros_left: int) -> None:
    run = run_of(tmp_path, Gaps, micro_batch_size=4, **GAPS)
    run.stage.micros_left = micros_left
    run.go()
    assert [record.is_skipped for record in run.recorder.steps[2:4]] == [micros_left == 0] * 2
    assert all(still(run.store.saved[1], run.store.saved[2])) is (micros_left == 0)


class OtherRank(World):
    """A world in which another rank has so many tokens to learn from, and no gradient."""

    elsewhere = 0.0

    def sum_numbers(self, values, device) -> dict[str, float]:
        found = dict(values)
        return found | {name: found[name] + self.elsewhere for name in found if name == NEXT}

    def sum_flat_(self, tensors) -> None: ...

    def of_first(self, value, device) -> float:
        return value


@pytest.mark.parametrize("elsewhere", [7.0, 0.0])
def test_one_rank_that_teaches_makes_a_step(
    tmp_path: Path, elsewhere: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherRank, "elsewhere", elsewhere)
    run = run_of(tmp_path, Gaps, **GAPS)
    run.world = OtherRank(size=2)
    run.stage.empty = tuple(range(6))
    assert run.go().skipped_steps == (0 if elsewhere else 6)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped_at_a_skipped_step(tmp_path: Path) -> None:
    whole = run_of(tmp_path, Gaps, **GAPS)
    expected = whole.go()
    store = MemoryStore()
    for budget in ("3-steps", "6-steps"):
        part = run_of(tmp_path, Gaps, **GAPS | {"budget": budget})
        part.store = store
        result = part.go()
    assert result.skipped_steps == expected.skipped_steps == 2
    assert part.recorder.losses == whole.recorder.losses[3:]
    assert all(still(store.saved[-1], whole.store.saved[-1]))


def test_what_is_not_finite_stops_the_run_in_a_skipped_step_too(tmp_path: Path) -> None:
    class BrokenGaps(Gaps):
        def loss(self, model, batch, progress) -> LossOutput:
            output = super().loss(model, batch, progress)
            output.terms["balance"].loss_sum = output.terms["balance"].loss_sum * float("nan")
            return output

    run = run_of(tmp_path, BrokenGaps, **GAPS)
    run.stage.empty = (0,)
    with pytest.raises(DivergenceError, match=r"Step 1: the loss is not finite \(balance\)"):
        run.go()


def test_bfloat16_computes_beside_float32_weights(tmp_path: Path) -> None:
    wide = run_of(tmp_path, Pretrain, budget="3-steps")
    narrow = run_of(tmp_path, Pretrain, budget="3-steps", dtype="bfloat16")
    wide.go()
    narrow.go()
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float32}
    assert narrow.recorder.losses != wide.recorder.losses
    assert narrow.recorder.losses == pytest.approx(wide.recorder.losses, rel=0.01)
