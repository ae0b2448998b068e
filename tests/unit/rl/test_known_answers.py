"""GRPO where what must come out is known: by enumeration, or because there is one way to be right.

The models are taught first, by plain cross-entropy, to be undecided between a few tokens: that is
where a run of GRPO begins, and where all its groups differ.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import gradients
from tests.training import ListRecorder, MemoryStore
from tests.unit.rl.toys import TOKENIZER, copied, grpo_config, model_of, training
from tests.unit.rollout.tasks import add_echo, echo
from ziphius.models.model import Model
from ziphius.rl.grpo import KEPT, GrpoStage
from ziphius.rl.objective import AdvantageKind
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout, problem_prompt, spoken_format
from ziphius.tasks import Problem
from ziphius.train.loop import train

Lesson = tuple[list[int], Sequence[int]]
"""Text, and the tokens that shall be equally likely behind it."""
CHOICES = range(40, 48)
PRESETS = ["v3-tiny", "r1-distill-llama-tiny"]


@pytest.fixture(autouse=True)
def _tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)


def pay(monkeypatch: pytest.MonkeyPatch, is_right: Callable[[Rollout], bool]) -> None:
    monkeypatch.setattr(
        "ziphius.rl.rollout_batch.reward", lambda rollout, bonus: float(is_right(rollout))
    )


def prompt(word: str) -> list[int]:
    chat_format = spoken_format(TOKENIZER)
    return list(problem_prompt(echo(word), TOKENIZER, chat_format, RolloutConfig()).ids)


def logits(model: Model, texts: Sequence[list[int]]) -> Tensor:
    """What comes behind texts of equal length: [texts, vocabulary]."""
    return model.logits(model(torch.tensor(texts)).hidden_BTD[:, -1])


@torch.no_grad()
def chances(model: Model, texts: Sequence[list[int]]) -> Tensor:
    return logits(model.eval(), texts).softmax(-1)


def teach(model: Model, steps: int, lessons: Callable[[int], Sequence[Lesson]]) -> Model:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for step in range(steps):
        texts, wanted = zip(*lessons(step), strict=True)
        scores = logits(model, texts).log_softmax(-1)
        loss = -scores.gather(1, torch.tensor(wanted)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def stage(
    model: Model,
    problems: Callable[[int], Sequence[Problem]],
    config: GrpoConfig,
    **changes: object,
) -> GrpoStage:
    rows = len(problems(0)) * config.rollout.num_generations
    settings = training(global_batch_size=rows, clip=0.2, **changes)
    return GrpoStage(model, TOKENIZER, lambda step, refill=0: problems(step), config, settings)


def run(
    folder: Path,
    model: Model,
    problems: Callable[[int], Sequence[Problem]],
    *,
    steps: int,
    num_generations: int = 16,
    length: int = 1,
    learning_rate: float = 1e-3,
) -> ListRecorder:
    config = grpo_config(
        rollout=RolloutConfig(num_generations=num_generations, max_new_tokens=length)
    )
    found = stage(model, problems, config, budget=f"{steps}-steps", learning_rate=learning_rate)
    recorder = ListRecorder()
    train(found, model, found.train, folder, store=MemoryStore(), recorder=recorder)
    return recorder


def undecided(preset: str) -> Model:
    """A model that answers the word x with one of eight tokens."""
    return teach(model_of(preset), 60, lambda step: [(prompt("x"), CHOICES)])


def mean_pull(chance: float, size: int, kind: AdvantageKind) -> float:
    """The summed advantages of right answers, per answer, over all groups that are not equal."""
    pull = weight = 0.0
    for rewards in product((0.0, 1.0), repeat=size):
        if len(set(rewards)) == 2:
            wins = sum(rewards)
            likelihood = chance**wins * (1 - chance) ** (size - wins)
            spread = statistics.pstdev(rewards) if kind == "std" else 1.0
            pull += likelihood * wins * (1 - wins / size) / spread / size
            weight += likelihood
    return pull / weight


def exact_gradient(chances_W: Tensor, right: int, size: int, kind: AdvantageKind) -> Tensor:
    """The mean gradient of the loss in the logits of the one token of an answer."""
    chance = float(chances_W[right])
    pull = mean_pull(chance, size, kind)
    # Within a group advantages add up to 0: what the right token gains, the others lose.
    gradient_W = pull * chances_W / (1 - chance)
    gradient_W[right] = -pull
    return gradient_W


def ratio(sums: Tensor, counts_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of gradients that were summed in rounds, and its standard error."""
    mean = sums.sum(0) / counts_R1.sum()
    return mean, (sums - mean * counts_R1).square().sum(0).sqrt() / counts_R1.sum()


@pytest.mark.parametrize(
    ("preset", "kind"), [("v3-tiny", "std"), ("v3-tiny", "mean"), ("r1-distill-llama-tiny", "std")]
)
def test_the_mean_gradient_is_the_exact_one(
    preset: str, kind: AdvantageKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within four standard errors for each logit, of 640 groups of which two fifths differ."""
    pay(monkeypatch, lambda rollout: rollout.token_ids[0] == CHOICES[4])
    model, size = undecided(preset), 4
    config = grpo_config(
        rollout=RolloutConfig(num_generations=size, max_new_tokens=1), advantage=kind
    )
    found = stage(model, lambda step: [echo("x")] * 16, config)
    hidden_D = model(torch.tensor([prompt("x")])).hidden_BTD[0, -1].detach()
    sums, counts = [], []
    for step in range(40):
        [batch] = found.batches(step)
        model.zero_grad()
        found.loss(model, batch, 0.0).terms["policy"].loss_sum.backward()
        grad_WD = model.lm_head.weight.grad
        # All answers are predicted from one hidden state h: grad = (gradient of the logits) h^T.
        sums.append(grad_WD @ hidden_D / hidden_D.square().sum())
        counts.append(found.weights(batch)[KEPT])
    mean_W, errors_W = ratio(torch.stack(sums).double(), torch.tensor(counts)[:, None].double())
    expected_W = exact_gradient(chances(model, [prompt("x")])[0].double(), CHOICES[4], size, kind)
    chosen = list(CHOICES)
    assert ((mean_W - expected_W).abs() <= 4 * errors_W + 1e-6)[chosen].all()
    assert expected_W[CHOICES[4]] < -20 * errors_W[CHOICES[4]]
    others = [token for token in range(len(mean_W)) if token not in CHOICES]
    assert mean_W[others].abs().sum() < 0.02 * mean_W.abs().sum()


FIRSTS, SECONDS = CHOICES[:4], CHOICES[4:]
RIGHT = {(first, SECONDS[0]) for first in FIRSTS}


def two_tokens(preset: str) -> tuple[Model, list[int], list[list[int]]]:
    """A model that answers x with any of four tokens and any of four others, and what it reads."""
    start = prompt("x")
    both = [[*start, first] for first in FIRSTS]
    lessons = [[(start, FIRSTS)], [(text, SECONDS) for text in both]]
    return teach(model_of(preset), 160, lambda step: lessons[step % 2]), start, both


@pytest.mark.parametrize("preset", PRESETS)
def test_the_mean_gradient_of_two_tokens_is_the_exact_one_in_every_weight(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projected on the exact one it is 1 within four standard errors, for each tensor.

    With p, the chance of a right answer, the gradient of the log-probability of the right ones is
    grad p / p in the mean, of the wrong ones -grad p / (1 - p); advantages of a group add up to 0.
    """
    pay(monkeypatch, lambda rollout: rollout.token_ids in RIGHT)
    size = 4
    model, start, both = two_tokens(preset)
    firsts = logits(model, [start])[0].softmax(-1)[list(FIRSTS)]
    chance = (firsts * logits(model, both).softmax(-1)[:, SECONDS[0]]).sum()
    chance.backward()
    p = chance.item()
    per_token = mean_pull(p, size, "std") / (p * (1 - p)) / 2
    exact = {name: -per_token * grad for name, grad in gradients(model).items() if grad.any()}
    assert any(".gate.weight" in name for name in exact) == (preset == "v3-tiny")
    config = grpo_config(rollout=RolloutConfig(num_generations=size, max_new_tokens=2))
    found = stage(model, lambda step: [echo("x")] * 16, config)
    sums, counts = [], []
    for step in range(40):
        [batch] = found.batches(step)
        found.loss(model.train(), batch, 0.0).terms["policy"].loss_sum.backward()
        grads = gradients(model)
        sums.append(
            [(grads[name] * each).sum() / each.square().sum() for name, each in exact.items()]
        )
        counts.append(found.weights(batch)[KEPT])
    means, errors = ratio(torch.tensor(sums).double(), torch.tensor(counts)[:, None].double())
    for name, mean, error in zip(exact, means.tolist(), errors.tolist(), strict=True):
        assert abs(mean - 1) <= 4 * error, f"{name}: {mean} +- {error}"
    assert errors.median() < 0.1


@pytest.mark.parametrize("preset", PRESETS)
def test_one_right_token_of_eight_is_found(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay(monkeypatch, lambda rollout: rollout.token_ids[0] == CHOICES[4])
    model = undecided(preset)
    assert chances(model, [prompt("x")])[0, CHOICES[4]] == pytest.approx(1 / 8, abs=0.01)
    steps = run(tmp_path, model, lambda step: [echo("x")] * 4, steps=50).steps
    assert chances(model, [prompt("x")])[0, CHOICES[4]] > 0.95
    assert steps[0].terms["reward"] < 0.3


@pytest.mark.parametrize("preset", PRESETS)
def test_opposite_answers_to_two_prompts_are_both_learned(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No habit is right for both, so that none can explain what was gained."""
    right = {"a": CHOICES[0], "b": CHOICES[1]}
    pay(monkeypatch, lambda rollout: rollout.token_ids[0] == right[rollout.problem.answer])
    texts = [prompt(word) for word in right]
    model = teach(model_of(preset), 60, lambda step: [(text, CHOICES[:2]) for text in texts])
    assert chances(model, texts)[:, CHOICES[:2]].flatten().tolist() == pytest.approx(
        [0.5] * 4, abs=0.02
    )
    run(tmp_path, model, lambda step: [echo(word) for word in right] * 2, steps=100)
    first, second = chances(model, texts)
    assert first[CHOICES[0]] > 0.95
    assert second[CHOICES[1]] > 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_a_token_that_decides_nothing_hardly_moves(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of an answer has its advantage: the mean over answers tells which earned it.

    What is left is the noise of the answers, which grows with the rate: at three times this one the
    first token drifts ten times as far.
    """
    pay(monkeypatch, lambda rollout: rollout.token_ids in RIGHT)
    model, start, both = two_tokens(preset)
    before = copied(model)
    run(
        tmp_path,
        model,
        lambda step: [echo("x")] * 4,
        steps=100,
        length=2,
        learning_rate=3e-4,
    )

    def drift(texts: list[list[int]]) -> float:
        """Total variation between the distributions before and after, the mean over texts."""
        moved = chances(model, texts) - chances(before, texts)
        return float(moved.abs().sum(-1).mean() / 2)

    assert chances(model, both)[:, SECONDS[0]].min() > 0.9
    assert drift(both) > 0.6
    assert drift([start]) < drift(both) / 4


LETTERS = "abcdefghij"


def digit_words(count: int) -> list[tuple[str, str]]:
    """Letters with one digit among them, and the digit; all with as many tokens."""
    lots, words = random.Random(0), {}
    while len(words) < count:
        letters, digit = lots.sample(LETTERS, 3), str(lots.randrange(10))
        letters.insert(lots.randrange(1, 4), digit)
        word = " ".join(letters)
        if len(prompt(word)) == 13:
            words[word] = digit
    return list(words.items())


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_rewarded_is_learned_of_prompts_that_were_never_asked(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say the digit, from a model whose demonstrations ended early."""
    words = digit_words(500)
    asked, unseen = words[:400], words[400:]
    tokens = {word: TOKENIZER.encode(digit)[0] for word, digit in words}
    pay(monkeypatch, lambda rollout: rollout.token_ids[0] == tokens[rollout.problem.answer])

    def lessons(step: int) -> list[Lesson]:
        return [(prompt(word), [tokens[word]]) for word, _ in random.Random(step).sample(asked, 32)]

    def right(model: Model) -> float:
        """The mean chance of the right answer to prompts that are only measured."""
        found = chances(model, [prompt(word) for word, _ in unseen])
        wanted = torch.tensor([[tokens[word]] for word, _ in unseen])
        return float(found.gather(1, wanted).mean())

    model = teach(model_of(preset), 24, lessons)
    before = right(model)
    assert 0.1 < before < 0.4
    run(
        tmp_path,
        model,
        lambda step: [echo(word) for word, _ in random.Random(step).sample(asked, 16)],
        steps=60,
        num_generations=8,
    )
    assert right(model) > before + 0.25
