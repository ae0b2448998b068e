"""Advantages, losses, gradients and clips of given answers equal those of TRL's GRPOTrainer.

`golden/trl.json` is what TRL computed, with the command that made it: a small Llama, three prompts
with four answers of different lengths each, rewards, and for every setting one or two steps of
plain gradient descent on the same answers. Where ours is meant to differ, by how much is stated
here, and the rest is still held to TRL:

1. TRL divides by the deviation with A - 1, plus 1e-4; ours divides with A.
2. TRL counts tokens of groups whose rewards are all equal in the mean; ours leaves them out, from
   the penalty against the reference too.
3. Dr. GRPO's divisor is a constant, answers times the longest allowed; ours is the tokens.
"""

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.figures import seen
from tests.unit.rl.toys import TOKENIZER, training
from tests.unit.rollout.tasks import echo
from ziphius.dist.world import ALONE
from ziphius.models.model import Model
from ziphius.models.published import from_published
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.rl import rollout_batch
from ziphius.rl.grpo import GrpoStage
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout
from ziphius.train.guard import Guard
from ziphius.train.step import StepOutcome, Stepper

THEIRS = json.loads((Path(__file__).parent / "golden" / "trl.json").read_text())
CASES: dict[str, dict[str, Any]] = THEIRS["cases"]
ANSWERS = 4
TOLERANCE = 2e-5


def model_of(scale: float = 1.0) -> Model:
    model = Model(from_published(dict(THEIRS["config"])))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.tensor(THEIRS["thousandths"][name]).view_as(parameter) / 1_000
            parameter.copy_(values * scale if values.dim() > 1 else values)
    return model


@torch.no_grad()
def scored(model: Model, prompt: list[int], ids: list[int], temperature: float) -> list[float]:
    """What the sampler notes of each token."""
    text = torch.tensor([[*prompt, *ids]])
    hidden = model(text[:, :-1]).hidden_BTD[0, len(prompt) - 1 :]
    scores_T = token_logprobs(model.logits(hidden), text[0, len(prompt) :], temperature=temperature)
    return scores_T.tolist()


class Descent(torch.optim.SGD):
    """Plain gradient descent that keeps the gradients it was given, one list for each step."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.parameters(), lr=THEIRS["rate"])
        self.model, self.seen = model, list[dict[str, Tensor]]()

    def step(self, closure: Any = None) -> None:
        self.seen.append({n: p.grad.clone() for n, p in self.model.named_parameters()})
        super().step()


def config_of(args: dict[str, Any]) -> GrpoConfig:
    """Our names of TRL's settings."""
    epsilon = args.get("epsilon", 0.2)
    return GrpoConfig(
        rollout=RolloutConfig(
            num_generations=ANSWERS,
            max_new_tokens=THEIRS["longest"],
            sampling=SamplingConfig(temperature=args.get("temperature", 1.0)),
        ),
        advantage="std" if args["scale_rewards"] == "group" else "mean",
        epsilon=epsilon,
        epsilon_high=args["epsilon_high"] or epsilon,
        beta=args.get("beta", 0.0),
        num_iterations=args.get("num_iterations", 1),
    )


def rollouts(case: dict[str, Any], model: Model, temperature: float) -> list[list[Rollout]]:
    """The given answers as if the model had sampled them."""
    answers = iter(case["answers"])
    return [
        [
            Rollout(
                problem=echo("x"),
                prompt_ids=tuple(prompt),
                token_ids=tuple(ids),
                logprobs=tuple(scored(model, prompt, ids, temperature)),
                finish_reason="stop",
                reasoning=None,
                answer=None,
                is_correct=False,
            )
            for ids in islice(answers, ANSWERS)
        ]
        for prompt in case["prompts"]
    ]


class Updates:
    """Our stage and stepper on the answers of a case."""

    def __init__(self, case: dict[str, Any], patch: pytest.MonkeyPatch, folder: Path) -> None:
        model, self.config = model_of(), config_of(case["args"])
        groups = rollouts(case, model, self.config.rollout.sampling.temperature)
        paid = {
            id(rollout): reward
            for group, rewards in zip(groups, case["rewards"], strict=True)
            for rollout, reward in zip(group, rewards, strict=True)
        }
        patch.setattr(rollout_batch, "sample_groups", lambda *args, **options: groups)
        patch.setattr(rollout_batch, "reward", lambda rollout, bonus: paid[id(rollout)])
        rows = case["args"].get("per_device_train_batch_size")
        settings = training(global_batch_size=len(paid), micro_batch_size=rows, clip=0.0)
        asked = [echo("x")] * len(groups)
        stage = GrpoStage(model, TOKENIZER, lambda step, refill=0: asked, self.config, settings)
        if self.config.beta:
            stage.reference = model_of(THEIRS["reference_scale"]).requires_grad_(False)
        optimizer = Descent(model)
        stepper = Stepper(
            stage,
            model.train(),
            optimizer,
            settings,
            guard=Guard(settings.guard),
            ema=None,
            world=ALONE,
            device=torch.device("cpu"),
            dtype=torch.float32,
            folder=folder,
        )
        self.outcomes: list[StepOutcome] = [
            stepper.run(step, progress=0.0, learning_rate=THEIRS["rate"])
            for step in range(self.config.num_iterations)
        ]
        self.gradients = optimizer.seen
        held = stage._rollouts
        assert held is not None
        self.advantages = [
            answer.advantage for group in held.groups for answer in group.completions
        ]

    def loss(self, update: int) -> float:
        terms = self.outcomes[update].terms
        return terms["policy"] + self.config.beta * terms.get("kl", 0.0)


@pytest.fixture
def updates_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return lambda name: Updates(CASES[name], monkeypatch, tmp_path)


def numbers_of(gradient: Tensor) -> Tensor:
    """Return the norm, and the product with cos(0), cos(1), ..."""
    flat = gradient.double().flatten()
    return torch.stack([flat.norm(), (flat * torch.arange(len(flat)).double().cos()).sum()])


def assert_same_gradient(
    actual: dict[str, Tensor], expected: dict[str, Any], factor: float
) -> None:
    """Hold every tensor's two numbers to TRL's, within a share of its norm."""
    assert set(actual) == set(expected)
    for name, numbers in expected.items():
        theirs = factor * torch.tensor(numbers, dtype=torch.float64)
        difference = (numbers_of(actual[name]) - theirs).abs().max() / theirs[0]
        assert theirs[0] > 0, name
        assert seen("gradients of GRPO against TRL", float(difference), TOLERANCE), name


def assert_same_updates(found: Updates, case: dict[str, Any], factor: float = 1.0) -> None:
    assert len(found.outcomes) == len(case["updates"])
    for number, (gradient, theirs) in enumerate(zip(found.gradients, case["updates"], strict=True)):
        expected = pytest.approx(factor * theirs["loss"], rel=TOLERANCE, abs=1e-7)
        assert found.loss(number) == expected
        assert_same_gradient(gradient, theirs["gradient"], factor)
        terms = found.outcomes[number].terms
        for name in {"kl", "clip_ratio"} & set(theirs):
            assert terms[name] == pytest.approx(theirs[name], rel=TOLERANCE, abs=1e-7), name


ALIKE = [
    "mean over tokens",
    "in three micro-batches",
    "a temperature",
    "a second update",
    "a second update, one clip",
    "a second update, narrow clips",
    "a reference",
]


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_answers_give_the_same_updates(name: str, updates_of: Any) -> None:
    found = updates_of(name)
    case = CASES[name]
    if "per_device_train_batch_size" not in case["args"]:  # TRL shuffles what it splits
        assert found.advantages == pytest.approx(case["advantages"], rel=TOLERANCE, abs=1e-7)
    assert_same_updates(found, case)


def test_the_cases_of_a_second_update_meet_both_clips() -> None:
    """So that they say something: each changes loss and gradient."""
    shares = {name: CASES[name]["updates"][-1].get("clip_ratio") for name in ALIKE}
    assert all(shares[name] > 0.05 for name in ALIKE[2:])
    losses = [CASES[name]["updates"][-1]["loss"] for name in ALIKE[3:]]
    assert min(abs(a - b) for a in losses for b in losses if a is not b) > 1e-3


def test_the_ratio_in_the_penalty_is_seen_from_the_first_update_on() -> None:
    """Of the model's own tokens it changes the gradient alone."""
    first, other = (
        CASES[f"a reference{name}"]["updates"][0] for name in ("", ", without its ratio")
    )
    assert first["loss"] == other["loss"]
    name = "model.embed_tokens.weight"
    assert first["gradient"][name] != pytest.approx(other["gradient"][name], rel=0.01)


def deviation_factor(rewards: list[list[float]]) -> float:
    """By how much our (r - mean) / std is larger than TRL's, which is alike in these groups."""
    spreads = {round(float(torch.tensor(group).double().std()), 12) for group in rewards}
    assert len(spreads) == 1
    return math.sqrt(ANSWERS / (ANSWERS - 1)) * (1 + 1e-4 / spreads.pop())


@pytest.mark.parametrize("name", ["divided by the deviation", "mean over answers, equally long"])
def test_divided_by_the_deviation_ours_is_larger_by_a_known_factor(
    name: str, updates_of: Any
) -> None:
    found = updates_of(name)
    case = CASES[name]
    factor = deviation_factor(case["rewards"])
    assert found.advantages == pytest.approx(
        [factor * a for a in case["advantages"]], rel=TOLERANCE
    )
    assert_same_updates(found, case, factor)


def tokens(case: dict[str, Any], groups: list[int]) -> int:
    return sum(len(ids) for g in groups for ids in case["answers"][g * ANSWERS : (g + 1) * ANSWERS])


def test_a_constant_divisor_changes_the_size_alone(updates_of: Any) -> None:
    case = CASES["a constant divisor"]
    divisor = len(case["answers"]) * THEIRS["longest"]
    found = updates_of("a constant divisor")
    assert_same_updates(found, case, divisor / tokens(case, [0, 1, 2]))


def test_tokens_of_equal_groups_are_left_out_of_the_mean(updates_of: Any) -> None:
    case = CASES["a group of equal rewards"]
    found = updates_of("a group of equal rewards")
    assert case["advantages"][ANSWERS : 2 * ANSWERS] == [0.0] * ANSWERS
    assert_same_updates(found, case, tokens(case, [0, 1, 2]) / tokens(case, [0, 2]))


def test_a_group_of_equal_rewards_is_as_if_it_had_not_been_asked(updates_of: Any) -> None:
    """TRL holds it to the reference, too."""
    name = "a reference, and a group of equal rewards"
    with_it, without_it = CASES[name], CASES["the same, never asked for that group"]
    assert abs(with_it["updates"][0]["loss"] - without_it["updates"][0]["loss"]) > 0.05
    assert_same_updates(updates_of(name), without_it)
