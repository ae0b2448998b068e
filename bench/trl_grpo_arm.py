"""TRL's GRPOTrainer as an arm of `bench/trl_grpo.py`, run by an interpreter with TRL and not us.

python bench/trl_grpo_arm.py FOLDER [FOLDER ...]

Every folder holds the toy, and `model` beside or above it; `curves.json` is written into it.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl_arm import QUIET, numbers
from trl_toy import Toy, mean_chance, reward

trl: Any = importlib.import_module("trl")  # in an environment of its own


class Measures(TrainerCallback):
    """Measure the chance of right answers, before the first update and on the way."""

    def __init__(self, toy: Toy) -> None:
        self.toy, self.chances = toy, list[float]()

    def on_train_begin(self, *args: Any, model: Any = None, **options: Any) -> None:
        self._measure(model)

    def on_step_end(self, args: Any, state: Any, *rest: Any, model: Any = None, **o: Any) -> None:
        if self.toy.is_measured(state.global_step):
            self._measure(model)

    def _measure(self, model: Any) -> None:
        is_training = model.training
        model.eval()
        self.chances.append(mean_chance(lambda ids: model(ids).logits, self.toy.unseen))
        model.train(is_training)


def run(folder: Path, model_folder: Path) -> dict[str, Any]:
    """Train as the toy says; return the curves."""
    toy = Toy.load(folder)
    settings, rewards = toy.settings, list[float]()
    asked = [each for questions in toy.rounds for each in questions]
    answers = {" ".join(map(str, each.prompt)): each.answer for each in asked}

    def pay(prompts: list[str], completion_ids: list[list[int]], **options: object) -> list[float]:
        paid = [reward(ids, answers[p]) for p, ids in zip(prompts, completion_ids, strict=True)]
        rewards.append(sum(paid) / len(paid))
        return paid

    build: Any = AutoModelForCausalLM.from_pretrained  # has no types
    measures = Measures(toy)
    trainer = trl.GRPOTrainer(
        model=build(model_folder, dtype=torch.float32),
        reward_funcs=pay,
        args=trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            seed=toy.seed,
            per_device_train_batch_size=len(toy.rounds[0]) * settings["answers"],
            num_generations=settings["answers"],
            max_completion_length=settings["max_new_tokens"],
            max_steps=len(toy.rounds) * settings["updates"],
            num_iterations=settings["updates"],
            shuffle_dataset=False,
            loss_type="dapo",
            scale_rewards="group" if settings["advantage"] == "std" else "none",
            epsilon=settings["epsilon"],
            epsilon_high=settings["epsilon_high"],
            beta=settings["beta"],
            temperature=1.0,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            optim="adamw_torch",
            adam_beta1=settings["beta1"],
            adam_beta2=settings["beta2"],
            adam_epsilon=settings["eps"],
            weight_decay=0.0,
            max_grad_norm=settings["clip"],
            bf16=False,
            **QUIET,
        ),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, q.prompt)) for q in asked]}),
        processing_class=numbers(toy.vocab_size),
        callbacks=[measures],
    )
    trainer.train()
    return {"reward": rewards, "chance": measures.chances, "trl": trl.__version__}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        folder = Path(name)
        curves = run(folder, folder.parent / "model")
        (folder / "curves.json").write_text(json.dumps(curves))
        print(f"{folder.name}: {curves['chance']}", flush=True)
