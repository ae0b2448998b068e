"""A toy with known answers, learned by our GRPO and by TRL's: do the curves differ?

    python bench/trl_grpo.py --trl PYTHON [--out bench/results/trl_grpo.json]

PYTHON is the interpreter of an environment with trl, transformers and torch. Both arms get the same
half-taught model, the same prompts in the same order and the same settings; draws alone differ.
Each start is run several times with other draws, which says how much draws alone differ in.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from rl import Silent
from torch import Tensor
from trl_toy import Question, Toy, mean_chance, reward

from ziphius.dist.world import ALONE
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.models.weights import load
from ziphius.models.weights.saving import save
from ziphius.rl import rollout_batch
from ziphius.rl.grpo import GrpoStage
from ziphius.rl.settings import GrpoConfig, GrpoTraining
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout, problem_prompt, spoken_format
from ziphius.tasks import TASKS, Problem
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer
from ziphius.train.guard import Guard
from ziphius.train.optim import build_optimizer
from ziphius.train.optimizer_config import OptimizerConfig
from ziphius.train.step import Stepper

PRESET = "r1-distill-llama-tiny"
ARMS = ("ours", "trl")
STARTS, DRAWS, UPDATES = (0, 1, 2), (0, 1), 40
TAUGHT = 0.5
"""Mean chance of the right answer at which GRPO begins."""
PROMPTS, ANSWERS, UNSEEN, ASKED = 32, 8, 200, 3_000
COMMON: dict[str, Any] = {
    "answers": ANSWERS,
    "max_new_tokens": 3,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "clip": 0.2,
    "measure_every": 8,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "std": {"advantage": "std", "beta": 0.0, "updates": 1},
    "mean, two updates, reference": {"advantage": "mean", "beta": 0.05, "updates": 2},
}
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "mean reward": lambda curves: statistics.fmean(curves["reward"]),
    "mean chance": lambda curves: statistics.fmean(curves["chance"]),
    "chance at the end": lambda curves: float(curves["chance"][-1]),
}
"""Of the curves of a run."""
T_95 = {5: 2.571}
"""Of the t-distribution, by degrees of freedom: half the width of an interval in errors."""


class Words:
    """Three letters with a digit d among them; right is (3 d + 1) mod 10.

    Which are asked and which only measured is drawn by seed; what is measured is never asked.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.format = tokenizer, spoken_format(tokenizer)
        lots, drawn = random.Random(seed), dict[str, None]()
        while len(drawn) < UNSEEN + ASKED:
            letters = lots.sample("abcdefghij", 3)
            letters.insert(lots.randrange(1, 4), str(lots.randrange(10)))
            drawn[" ".join(letters)] = None
        lengths = {word: len(self.question(word).prompt) for word in drawn}
        # Some tokens hold more than one letter; all prompts shall have one length.
        commonest = statistics.mode(lengths.values())
        words = [word for word in drawn if lengths[word] == commonest]
        self.unseen, self.asked = words[:UNSEEN], words[UNSEEN:]

    def problem(self, word: str) -> Problem:
        """Ask for the digit of a word."""
        digit = next(int(letter) for letter in word if letter.isdigit())
        return Problem(
            task="silent",
            level=1,
            question=word,
            answer=str((3 * digit + 1) % 10),
            content=word,
            facts={},
        )

    def question(self, word: str) -> Question:
        """Write a problem as tokens."""
        problem = self.problem(word)
        prompt = problem_prompt(problem, self.tokenizer, self.format, RolloutConfig())
        return Question(list(prompt.ids), self.right(problem))

    def right(self, problem: Problem) -> list[int]:
        """Return the tokens of the right answer."""
        return [*self.tokenizer.encode(problem.answer), *self.tokenizer.eos_ids]


def logits(model: Model, ids_BT: Tensor) -> Tensor:
    """Return the logits of whole texts."""
    return model.logits(model(ids_BT).hidden_BTD)


def chance(model: Model, questions: Sequence[Question]) -> float:
    """Return the mean chance of the right answer."""
    model.eval()
    found = mean_chance(lambda ids_BT: logits(model, ids_BT), questions)
    model.train()
    return found


def half_taught(words: Words, seed: int) -> tuple[Model, int]:
    """Teach by cross-entropy until unseen words are answered rightly half of the time."""
    model = Model(get_preset(PRESET))
    model.initialize(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.0)
    lots = random.Random(seed)
    unseen = [words.question(word) for word in words.unseen]
    for step in range(5_000):
        if chance(model, unseen) >= TAUGHT:
            return model, step
        taught = [words.question(word) for word in lots.sample(words.asked, 64)]
        texts_BT = torch.tensor([each.prompt + each.answer for each in taught])
        first = len(taught[0].prompt)
        scores = logits(model, texts_BT)[:, first - 1 : -1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(scores, texts_BT[:, first:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise SystemExit(f"seed {seed}: the model did not learn the digits")


class Ours:
    """Our stage on a toy, stepped as the loop steps it."""

    def __init__(self, toy: Toy, words: Words, chosen: list[list[str]], folder: Path) -> None:
        self.toy, settings = toy, toy.settings
        self.model = load(folder / "model", dtype=torch.float32)
        config = GrpoConfig(
            rollout=RolloutConfig(
                num_generations=settings["answers"], max_new_tokens=settings["max_new_tokens"]
            ),
            **{name: settings[name] for name in ("advantage", "epsilon", "epsilon_high")},
            **{name: settings[name] for name in ("beta", "updates")},
        )
        train = GrpoTraining(
            global_batch_size=PROMPTS * settings["answers"],
            seed=toy.seed,
            dtype="float32",
            device="cpu",
            clip=settings["clip"],
            optimizer=OptimizerConfig(
                beta1=settings["beta1"],
                beta2=settings["beta2"],
                eps=settings["eps"],
                weight_decay=0.0,
            ),
        )
        asked = [[words.problem(word) for word in each] for each in chosen]
        self.stepper = Stepper(
            GrpoStage(
                self.model, words.tokenizer, lambda step, refill=0: asked[step], config, train
            ),
            self.model.train(),
            build_optimizer(self.model, train.optimizer),
            train,
            guard=Guard(train.guard),
            ema=None,
            world=ALONE,
            device=torch.device("cpu"),
            dtype=torch.float32,
            folder=folder,
        )

    def run(self) -> dict[str, Any]:
        """Train; return the curves."""
        toy, rewards = self.toy, list[float]()
        chances = [chance(self.model, toy.unseen)]
        for update in range(len(toy.rounds) * toy.settings["updates"]):
            rate = toy.settings["learning_rate"]
            terms = self.stepper.run(update, progress=0.0, learning_rate=rate).terms
            if update % toy.settings["updates"] == 0:
                rewards.append(terms["reward"])
            if toy.is_measured(update + 1):
                chances.append(chance(self.model, toy.unseen))
        return {"reward": rewards, "chance": chances}


@dataclass
class Run:
    """One start, setting and draw, and the curves of both arms."""

    setting: str
    start: int
    draw: int
    taught_steps: int
    ours: dict[str, Any]
    trl: dict[str, Any] = field(default_factory=dict)


def runs_of(start: int, tokenizer: Tokenizer, home: Path, python: str) -> list[Run]:
    """Run all settings and draws of a start, first with our arm and then with TRL's."""
    words = Words(tokenizer, start)

    def pay(rollout: Rollout, format_bonus: float) -> float:
        return reward(rollout.token_ids, words.right(rollout.problem))

    rollout_batch.reward = pay
    model, taught_steps = half_taught(words, start)
    save(model, home / "model", tokenizer, weight_format="float32")
    found, folders = list[Run](), list[Path]()
    for (name, changes), draw in product(SETTINGS.items(), DRAWS):
        lots = random.Random(start)
        count = UPDATES // changes["updates"]
        chosen = [lots.sample(words.asked, PROMPTS) for _ in range(count)]
        toy = Toy(
            rounds=[[words.question(word) for word in each] for each in chosen],
            unseen=[words.question(word) for word in words.unseen],
            settings=COMMON | changes,
            vocab_size=model.config.vocab_size,
            seed=100 * start + draw + 1,
        )
        folders.append(home / f"{changes['advantage']}-{draw}")
        folders[-1].mkdir()
        toy.save(folders[-1])
        found.append(Run(name, start, draw, taught_steps, Ours(toy, words, chosen, home).run()))
        print(f"ours, {name}, {start}.{draw}: {found[-1].ours['chance']}", flush=True)
    script = Path(__file__).with_name("trl_grpo_arm.py")
    subprocess.run([python, str(script), *map(str, folders)], check=True)
    for run, folder in zip(found, folders, strict=True):
        run.trl = json.loads((folder / "curves.json").read_text())
        gap = run.ours["chance"][0] - run.trl["chance"][0]
        assert abs(gap) < 1e-5, "the arms do not begin with the same model"
    return found


def compared(runs: Sequence[Run]) -> dict[str, Any]:
    """Compare the arms of one setting: run by run, with an interval of the mean difference."""
    result: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        ours, theirs = ([measure(getattr(run, arm)) for run in runs] for arm in ARMS)
        gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
        half = T_95[len(gaps) - 1] * statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.fmean(gaps)
        result[name] = {
            "ours": [round(value, 4) for value in ours],
            "trl": [round(value, 4) for value in theirs],
            "difference": round(mean, 4),
            "interval": [round(mean - half, 4), round(mean + half, 4)],
            "between_draws": {
                arm: round(draws_alone(values), 4)
                for arm, values in zip(ARMS, (ours, theirs), strict=True)
            },
        }
    for curve in ("reward", "chance"):
        result[curve] = {
            arm: [
                round(statistics.fmean(values), 4)
                for values in zip(*(getattr(run, arm)[curve] for run in runs), strict=True)
            ]
            for arm in ARMS
        }
    return result


def draws_alone(values: Sequence[float]) -> float:
    """Return the standard deviation between runs of one start, pooled over the starts."""
    starts = [values[i : i + len(DRAWS)] for i in range(0, len(values), len(DRAWS))]
    return math.sqrt(statistics.fmean(statistics.variance(each) for each in starts))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", required=True, help="interpreter of an environment with trl")
    parser.add_argument("--out", type=Path, default=Path("bench/results/trl_grpo.json"))
    options = parser.parse_args()
    tokenizer = deepseek_tokenizer(get_preset(PRESET).vocab_size)
    silent: Any = Silent()
    TASKS["silent"] = silent
    runs = list[Run]()
    for start in STARTS:
        with tempfile.TemporaryDirectory(prefix="trl-grpo-") as name:
            runs += runs_of(start, tokenizer, Path(name), options.trl)
    result = {
        "machine": machine.describe(),
        "trl": runs[0].trl["trl"],
        "preset": PRESET,
        "prompts": PROMPTS,
        "common": COMMON,
        "settings": SETTINGS,
        "taught_steps": {str(run.start): run.taught_steps for run in runs},
        "compared": {
            name: compared([run for run in runs if run.setting == name]) for name in SETTINGS
        },
        "runs": [asdict(run) for run in runs],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result) + "\n")
    for name, figures in result["compared"].items():
        for measure in MEASURES:
            print(f"{name}: {measure}: {figures[measure]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
