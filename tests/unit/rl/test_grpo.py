"""`rl/grpo.py`: the stage against plain loops over single sequences, and all it promises."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import assert_same_gradients, gradients
from tests.training import ListRecorder, MemoryStore
from tests.unit.rl.toys import (
    NUM_GENERATIONS,
    TOKENIZER,
    copied,
    grpo_config,
    model_of,
    nudge,
    objective,
    pay_low_ids,
    questions,
    stage,
    training,
)
from tests.unit.rollout.tasks import Echo, add_echo, echo
from ziphius.core.errors import ConfigError
from ziphius.dist.world import World
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.gates.sigmoid import BiasedSigmoidGate
from ziphius.models.model import Model
from ziphius.ops.logprobs import token_logprobs
from ziphius.rl import rollout_batch
from ziphius.rl.batch import Group
from ziphius.rl.grpo import KEPT, GrpoStage
from ziphius.rl.settings import GrpoConfig, GrpoTraining
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.tasks import Problem, Task
from ziphius.train.loop import train
from ziphius.train.seams import StepRecord

PRESETS = ["v3-tiny", "v2-tiny", "r1-distill-llama-tiny"]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    pay_low_ids(monkeypatch)


def in_loops(
    model: Model, groups: list[Group], config: GrpoConfig, reference: Model | None
) -> tuple[Tensor, int]:
    """GRPO as it is written down: sequence by sequence, token by token."""
    total, tokens = torch.zeros(()), 0
    for group in groups:
        for answer in group.completions:
            ids = torch.tensor([[*group.prompt_ids, *answer.token_ids]])
            routes = {layer: each.long()[None] for layer, each in (answer.routes or {}).items()}
            first = len(group.prompt_ids)
            scores = []
            for each, replayed in ((model, routes), (reference, {})):
                if each is not None:
                    batch = ForwardBatch(ids[:, :-1], routes=replayed)
                    hidden = each(batch).hidden_BTD[0, first - 1 :]
                    scores.append(token_logprobs(each.logits(hidden), ids[0, first:]))
            for place, old in enumerate(answer.rollout_logprobs):
                ratio = (scores[0][place] - old).exp()
                low, high = 1 - config.epsilon, 1 + config.epsilon_high
                win = torch.minimum(
                    ratio * answer.advantage, ratio.clamp(low, high) * answer.advantage
                )
                total = total - win
                if reference is not None:
                    back = (scores[1][place].detach() - scores[0][place]).exp()
                    total = total + config.beta * ratio * (back - back.log() - 1)
                tokens += 1
    return total / tokens, tokens


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_are_those_of_plain_loops(preset: str) -> None:
    reference, model = model_of(preset), model_of(preset)
    config = grpo_config(beta=0.3, num_iterations=2)
    found = stage(model, config)
    found.reference = reference
    found.batches(0)
    nudge(model, 0.02)  # so that ratios are not 1, clips bite and the penalty is not 0
    actual, means = objective(found, model, step=1)
    actual.backward()
    grads = gradients(model)
    rollouts = found._rollouts
    assert rollouts is not None
    expected, tokens = in_loops(model, rollouts.groups, config, reference)
    expected.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(grads, gradients(model))
    assert means["clip_ratio"] > 0.05
    assert means["kl"] > 1e-3
    assert tokens == sum(len(a.token_ids) for group in rollouts.groups for a in group.completions)


def test_any_split_into_micro_batches_is_the_same_step() -> None:
    model = model_of("v3-tiny")
    whole, whole_means = objective(stage(model), model, 0)
    whole.backward()
    expected = gradients(model)
    parts = stage(model, train=training(micro_batch_size=NUM_GENERATIONS))
    assert len(parts.batches(0)) == 3
    split, split_means = objective(parts, model, 0)
    split.backward()
    assert_same_gradients(gradients(model), expected)
    assert split_means == pytest.approx(whole_means, abs=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_trainer_and_sampler_agree_in_float32(preset: str) -> None:
    model = model_of(preset)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # logits of a trained model's size
    found = stage(model, grpo_config(rollout=RolloutConfig(num_generations=8, max_new_tokens=40)))
    _, means = objective(found, model.train(), 0)
    assert 0 < means["gap"] <= 1e-5
    assert means["clip_ratio"] == 0
    assert means["entropy"] > 1


def bfloat16_step(replay: bool) -> tuple[dict[int, Tensor], dict[int, Tensor], float]:
    """Routes of the sampler and of the trainer under autocast, and the gap between them."""
    model = model_of("v3-tiny", hidden_size=128)
    rollout = RolloutConfig(num_generations=16, max_new_tokens=40)
    # Routes are recorded in both cases, to be compared.
    found = stage(
        model, grpo_config(rollout=rollout), training(dtype="bfloat16", global_batch_size=48)
    )
    [batch] = found.batches(0)
    found.config = found.config.model_copy(update={"replay_routes": replay})
    with torch.autocast("cpu", torch.bfloat16):
        output = found.loss(model.train(), batch, 0.0)
    taken = {layer: routing.experts_MK for layer, routing in output.routings.items()}
    return batch.routes, taken, float(output.metrics["sampling_logp_difference_max"])


def test_without_replay_routes_differ_in_bfloat16() -> None:
    sampled, taken, _ = bfloat16_step(replay=False)
    differ = [
        (sampled[layer][0].sort().values != taken[layer].sort().values).any(-1) for layer in taken
    ]
    assert torch.stack(differ).any(0).float().mean() > 0.001


def test_with_replay_they_are_the_same() -> None:
    sampled, taken, gap = bfloat16_step(replay=True)
    assert all(torch.equal(sampled[layer][0], taken[layer]) for layer in taken)
    assert gap < 0.1


def test_the_router_learns_from_replayed_routes() -> None:
    model = model_of("v3-tiny")
    total, _ = objective(stage(model), model, 0)
    total.backward()
    grads = gradients(model)
    assert grads["model.layers.1.mlp.gate.weight"].norm() > 0
    assert all(grad.norm() == 0 for name, grad in grads.items() if ".layers.3." in name), "MTP"


def run(
    folder: Path,
    model: Model,
    config: GrpoConfig | None = None,
    train_config: GrpoTraining | None = None,
    *,
    store: MemoryStore | None = None,
    **options: Any,
) -> list[StepRecord]:
    settings = train_config or training()
    recorder = ListRecorder()
    train(
        stage(model, config, settings, **options),
        model,
        settings,
        folder,
        store=store or MemoryStore(),
        recorder=recorder,
    )
    return recorder.steps


def test_biases_and_mtp_stand_still_and_rewards_rise(tmp_path: Path) -> None:
    model = model_of("v3-tiny")
    for module in model.modules():
        if isinstance(module, BiasedSigmoidGate):
            module.e_score_correction_bias.normal_(std=0.1)
    before = copy.deepcopy(model.state_dict())
    rollout = RolloutConfig(num_generations=8, max_new_tokens=8)
    steps = run(
        tmp_path,
        model,
        grpo_config(rollout=rollout),
        training(budget="25-steps", global_batch_size=24, learning_rate=1e-2),
    )
    after = model.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert {name for name in before if "correction_bias" in name or ".layers.3." in name} == set(
        still
    )
    rewards = [record.terms["reward"] for record in steps]
    assert sum(rewards[-5:]) / 5 > 0.3 + sum(rewards[:5]) / 5
    for record in steps:
        assert record.terms["sampling_logp_difference_max"] <= 1e-5
        assert {"clip_ratio", "frac_reward_zero_std", "entropy"} <= record.terms.keys()
        assert record.terms["sampled_completions"] == 24
        assert record.terms["refilled_groups"] == 0
        assert "reward/format" not in record.terms


def test_the_reference_is_the_model_of_the_start(tmp_path: Path) -> None:
    steps = run(tmp_path, model_of("v3-tiny"), grpo_config(beta=0.1))
    assert steps[0].terms["kl"] == pytest.approx(0, abs=1e-9)
    kl = [record.terms["kl"] for record in steps[2:]]
    assert all(value > 1e-6 for value in kl)
    assert "kl" not in run(tmp_path, model_of("v3-tiny"))[0].terms


class JsonStore(MemoryStore):
    """Keeps the state of the stage too, as a checkpoint would: through JSON."""

    def save_async(self, state: Any) -> None:
        super().save_async(state)
        self.saved[-1]["stage"] = json.dumps(state.stage.state())

    def restore(self, state: Any, checkpoint: Path) -> str:
        state.stage.restore(json.loads(self.saved[-1]["stage"]))
        self.saved[-1]["plan"] = state.plan  # the run is to be longer than it was
        return super().restore(state, checkpoint)


@pytest.mark.parametrize("num_iterations", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_resumed_run_is_bit_exact(
    num_iterations: int, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_first_ids(monkeypatch, but_for="xxxxx yyyyy")
    config = grpo_config(num_iterations=num_iterations, beta=beta, refill_rounds=2)
    whole = model_of("v3-tiny")
    expected = run(tmp_path, whole, config)
    store, model = JsonStore(), model_of("v3-tiny")
    first = run(tmp_path, model, config, training(budget="4-steps"), store=store)
    assert (store.saved[-1]["stage"] == "{}") == (num_iterations == 1)
    # A new process: the model of the start again, which the checkpoint fills.
    resumed = model_of("v3-tiny")
    rest = run(tmp_path, resumed, config, store=store)
    assert [r.step for r in rest] == [5, 6]
    for record, same in zip([*first, *rest], expected, strict=True):
        assert record.terms == same.terms
        assert record.grad_norm == same.grad_norm
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_answers_are_used_as_often_as_asked(tmp_path: Path) -> None:
    steps = run(tmp_path, model_of("v3-tiny"), grpo_config(num_iterations=3))
    rewards = [record.terms["reward"] for record in steps]
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3] == rewards[4] == rewards[5]
    gaps = [record.terms["sampling_logp_difference_max"] for record in steps]
    assert [gap > 0 for gap in gaps] == [True, False, False] * 2


def test_a_step_without_a_difference_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", lambda rollout, bonus: 1.0)
    model = model_of("v3-tiny")
    before = copied(model)
    steps = run(tmp_path, model, grpo_config(beta=0.1), training(budget="2-steps"))
    assert [record.terms["frac_reward_zero_std"] for record in steps] == [1.0, 1.0]
    assert [record.loss for record in steps] == [0.0, 0.0]
    assert [record.is_skipped for record in steps] == [True, True]
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_momentum_does_not_outlive_what_there_was_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = MemoryStore(), model_of("v3-tiny")
    often = {"save_every": "1-steps"}
    run(tmp_path, model, train_config=training(budget="3-steps", **often), store=store)
    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", lambda rollout, bonus: 1.0)
    longer = JsonStore()
    longer.saved = [store.saved[-1] | {"stage": "{}"}]
    [record, _] = run(
        tmp_path, model, train_config=training(budget="5-steps", **often), store=longer
    )
    assert record.is_skipped
    before, after = store.saved[-1], longer.saved[-1]
    assert after["step"] == 5
    for name, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][name]), name
    for number, state in before["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, after["optimizer"]["state"][number][name])


def test_the_bonus_is_a_figure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziphius.rl.rollout_batch.format_part", lambda rollout, bonus: bonus / 4)
    config = grpo_config(format_bonus=0.2, advantage="mean")
    [record] = run(tmp_path, model_of("v3-tiny"), config, training(budget="1-steps"))
    assert record.terms["reward/format"] == pytest.approx(0.05)


def pay_first_ids(monkeypatch: pytest.MonkeyPatch, but_for: str) -> None:
    """Reward the first id of an answer, and all answers to some words alike."""

    def paid(rollout: Rollout, bonus: float) -> float:
        word = rollout.problem.answer
        return 0.5 if word.rstrip("0123456789") in but_for.split() else float(rollout.token_ids[0])

    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", paid)


def prompts(found: GrpoStage) -> list[str]:
    assert found._rollouts is not None
    return [TOKENIZER.decode(list(group.prompt_ids)) for group in found._rollouts.groups]


def test_equal_groups_are_replaced_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pay_first_ids(monkeypatch, but_for="xxxxx yyyyy")
    found = stage(model_of("v3-tiny"), grpo_config(refill_rounds=3))
    [batch] = found.batches(0)
    assert [text.split("Say ")[1].split("0")[0] for text in prompts(found)] == [
        "xx",
        "xxxxxxxx",
        "zzzzz",
    ]
    assert batch.figures["refilled_groups"] == 1
    assert batch.figures["frac_reward_zero_std"] == 1
    assert batch.figures["sampled_completions"] == 5 * NUM_GENERATIONS


def test_rollouts_have_the_number_of_updates_that_their_weights_have_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of refills and of a run that goes on included; the engine is one."""
    versions: list[set[int]] = []

    def noted(*args: Any, **options: Any) -> Any:
        groups = sample_groups(*args, **options)
        versions.append({rollout.policy_version for group in groups for rollout in group})
        return groups

    monkeypatch.setattr(rollout_batch, "sample_groups", noted)
    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", lambda rollout, bonus: 0.0)
    model, config = model_of("v3-tiny"), grpo_config(num_iterations=3, refill_rounds=1)
    found = stage(model, config)
    for step in range(7):
        found.batches(step)
        nudge(model, 0.02)
    assert versions == [{0}, {0}, {3}, {3}, {6}, {6}]
    again = stage(model, config)
    again.batches(9)
    assert versions[6:] == [{9}, {9}]


@pytest.mark.parametrize(("rounds", "sampled"), [(0, 3), (1, 6), (2, 9)])
def test_there_are_no_more_refills_than_allowed(
    rounds: int, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", lambda rollout, bonus: 0.0)
    found = stage(model_of("v3-tiny"), grpo_config(refill_rounds=rounds))
    [batch] = found.batches(0)
    assert batch.figures["sampled_completions"] == sampled * NUM_GENERATIONS
    assert batch.figures["refilled_groups"] == 0
    assert found.weights(batch)[KEPT] == 0


def draws(monkeypatch: pytest.MonkeyPatch, ranks: int = 1, steps: int = 1) -> dict[int, Any]:
    """What is asked and answered with two refills, by the number of a group's first sequence."""
    drawn: dict[int, Any] = {}

    def noted(*args: Any, first_sequence_id: int, numbers: list[int], **options: Any) -> Any:
        groups = sample_groups(
            *args, first_sequence_id=first_sequence_id, numbers=numbers, **options
        )
        for number, group in zip(numbers, groups, strict=True):
            key = first_sequence_id + number * NUM_GENERATIONS
            assert key not in drawn, "these sequences were drawn before"
            drawn[key] = [(answer.problem.question, answer.token_ids) for answer in group]
        return groups

    monkeypatch.setattr(rollout_batch, "sample_groups", noted)
    model = model_of("v3-tiny")
    for rank in range(ranks):
        found = stage(model, grpo_config(refill_rounds=2), world=World(rank, ranks))
        for step in range(steps):
            found.batches(step)
    return drawn


def test_what_is_drawn_hangs_on_step_refill_and_place_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ziphius.rl.rollout_batch.reward", lambda rollout, bonus: 0.0)
    whole = draws(monkeypatch, steps=2)
    assert len(whole) == 2 * 3 * 3  # steps, rounds of sampling, problems
    assert draws(monkeypatch, ranks=3, steps=2) == whole
    assert len({repr(group) for group in whole.values()}) == len(whole)
    # A refill that only one place needs draws there what it draws when all places need it.
    pay_first_ids(monkeypatch, but_for="xxxxx")
    some = draws(monkeypatch)
    assert len(some) == 4
    assert some.items() <= whole.items()


def test_the_counts_of_a_step_are_of_all_ranks_and_of_sampling_alone(tmp_path: Path) -> None:
    model = model_of("v3-tiny")
    totals = {}
    for rank in range(3):
        found = stage(model, grpo_config(num_iterations=2), world=World(rank, 3))
        for step in range(2):
            [batch] = found.batches(step)
            output, weights = found.loss(model, batch, 0.0), found.weights(batch)
            for name in ("sampled_completions", "reward"):
                term = output.terms[name]
                total, weight = totals.get((name, step), (0.0, 0.0))
                totals[name, step] = (
                    total + float(term.loss_sum),
                    weight + weights[term.weight_key],
                )
    assert totals["sampled_completions", 0] == (12, 1)
    assert totals["sampled_completions", 1] == (0, 1)
    assert totals["reward", 0] == totals["reward", 1]
    assert totals["reward", 0][1] == 12


def test_groups_that_are_equal_are_not_in_the_divisor(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [problem.question for problem in questions(0)]
    monkeypatch.setattr(
        "ziphius.rl.rollout_batch.reward",
        lambda rollout, bonus: (
            float(rollout.token_ids[0] % 2) if rollout.problem.question == words[0] else 1.0
        ),
    )
    found = stage(model_of("v3-tiny"))
    [batch] = found.batches(0)
    rollouts = found._rollouts
    assert rollouts is not None
    assert len(rollouts.groups) == 1
    tokens = sum(len(answer.token_ids) for answer in rollouts.groups[0].completions)
    assert found.weights(batch)[KEPT] == tokens < rollouts.counts["sampled tokens"]


def test_steps_and_seeds_give_other_answers() -> None:
    model = model_of("v3-tiny")
    first, again = (stage(model).batches(0)[0] for _ in range(2))
    assert torch.equal(first.ids_BT, again.ids_BT)
    other_step = stage(model).batches(1)[0]
    other_seed = stage(model, train=training(seed=1)).batches(0)[0]
    for other in (other_step, other_seed):
        assert first.ids_BT.tolist() != other.ids_BT.tolist()


def test_ranks_share_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("v3-tiny")
    [whole] = stage(model).batches(0)
    parts = [stage(model, world=World(rank, 3)).batches(0)[0] for rank in range(3)]
    assert torch.equal(torch.cat([part.targets_X for part in parts]), whole.targets_X)
    with pytest.raises(ConfigError, match="3 problems a step cannot be shared by 2 processes"):
        stage(model, world=World(0, 2)).batches(0)


def test_held_out_problems_are_answered_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("v3-tiny")
    asked: list[str] = []
    found = stage(model, validation=[echo("a"), echo("b"), echo("c"), echo("d")])

    def only_b(self: Task, problem: Problem, answer: str | None) -> bool:
        asked.append(problem.answer)
        return problem.answer == "b"

    monkeypatch.setattr(Echo, "verify", only_b)
    figures = found.validate(model)
    assert asked == ["a", "b", "c", "d"]
    assert figures["loss"] == 0.75
    assert figures["pass@1"] == 0.25
    assert 1 <= figures["completions/mean_length"] <= 6


def test_the_fingerprint_names_problems_and_settings() -> None:
    model = model_of("v3-tiny")
    names = {
        stage(model, data_fingerprint=data, config=config).fingerprint()
        for data in "ab"
        for config in (grpo_config(), grpo_config(advantage="mean"))
    }
    assert len(names) == 4
    assert TOKENIZER.chat_format == "deepseek-r1"
