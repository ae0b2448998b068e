"""What TRL's GRPOTrainer makes of given answers and rewards: `tests/numerics/golden/trl.json`.

Run by an interpreter that has trl, transformers and torch, and not us; `tests/numerics/test_trl.py`
holds our stage to what is written. Answers are given, not sampled, so that nothing is left to
chance. Weights are whole thousandths, which JSON and float32 hold alike.

    python bench/trl_steps.py tests/numerics/golden/trl.json
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from trl_arm import END, QUIET, numbers

trl: Any = importlib.import_module("trl")  # in an environment of its own

SHAPE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 0,
}
PROMPTS, ANSWERS, LONGEST = 3, 4, 6
REFERENCE_SCALE = 0.8
"""The reference is the model with every matrix times this."""
MIXED = [[1.0, 0.0, 0.0, 1.0], [0.25, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 1.0]]
HALVES = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
ONE_EQUAL = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
RATE = 0.2
"""Of plain gradient descent, so large that the second update on the same answers meets the clip."""

PLAIN: dict[str, Any] = {"loss_type": "dapo", "scale_rewards": "none", "epsilon_high": 0.28}
TWICE = PLAIN | {"num_iterations": 2}
CASES: dict[str, dict[str, Any]] = {
    "mean over tokens": {"args": PLAIN},
    "in three micro-batches": {
        "args": PLAIN | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    },
    "divided by the deviation": {"args": PLAIN | {"scale_rewards": "group"}, "rewards": HALVES},
    "a constant divisor": {"args": PLAIN | {"loss_type": "dr_grpo"}},
    "mean over answers, equally long": {
        "args": PLAIN | {"loss_type": "grpo", "scale_rewards": "group"},
        "rewards": HALVES,
        "length": 3,
    },
    "a group of equal rewards": {"args": PLAIN, "rewards": ONE_EQUAL},
    "a temperature": {"args": TWICE | {"temperature": 0.7}},
    "a second update": {"args": TWICE},
    "a second update, one clip": {"args": TWICE | {"epsilon_high": None}},
    "a second update, narrow clips": {"args": TWICE | {"epsilon": 0.02, "epsilon_high": 0.05}},
    "a reference": {"args": TWICE | {"beta": 0.1, "use_bias_correction_kl": True}},
    "a reference, without its ratio": {
        "args": TWICE | {"beta": 0.1, "use_bias_correction_kl": False}
    },
    "a reference, and a group of equal rewards": {
        "args": TWICE | {"beta": 0.1, "use_bias_correction_kl": True},
        "rewards": ONE_EQUAL,
    },
    "the same, never asked for that group": {
        "args": TWICE | {"beta": 0.1, "use_bias_correction_kl": True},
        "rewards": [ONE_EQUAL[0], ONE_EQUAL[2]],
        "prompts": [0, 2],
    },
}


def weights(config: Any) -> dict[str, list[int]]:
    """Draw every tensor in thousandths, so large that logits differ by some units."""
    generator = torch.Generator().manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config  # has no types
    drawn = {}
    for name, tensor in build(config).state_dict().items():
        normal = torch.randn(tensor.shape, generator=generator)
        wide = normal / tensor.shape[-1] ** 0.5 if tensor.dim() > 1 else 1 + 0.2 * normal
        drawn[name] = (1_000 * wide).round().int().flatten().tolist()
    return drawn


def filled(config: Any, thousandths: dict[str, list[int]], scale: float = 1.0) -> Any:
    """Build a model of these weights, its matrices scaled."""
    build: Any = AutoModelForCausalLM.from_config  # has no types
    model = build(config)
    for name, tensor in model.state_dict().items():
        values = (torch.tensor(thousandths[name]) / 1_000).view_as(tensor)
        tensor.copy_(values * scale if tensor.dim() > 1 else values)
    return model


def draw(count: int, generator: torch.Generator) -> list[int]:
    """Draw tokens, none of them the end."""
    return torch.randint(2, SHAPE["vocab_size"], (count,), generator=generator).tolist()


def asked() -> list[list[int]]:
    """Draw prompts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [draw(2 + number, generator) for number in range(PROMPTS)]


def answered(length: int | None) -> list[list[list[int]]]:
    """Draw answers, of one length or of many; about every second one ends by itself."""
    generator = torch.Generator().manual_seed(2)
    answers = []
    for number in range(PROMPTS):
        lengths = [length or 1 + (3 * number + 2 * each) % LONGEST for each in range(ANSWERS)]
        answers.append(
            [
                [*draw(n - 1, generator), END] if (n + each // 2) % 2 else draw(n, generator)
                for each, n in enumerate(lengths)
            ]
        )
    return answers


def make_trainer(folder: str, case: dict[str, Any], answers: list[list[int]], **more: Any) -> Any:
    """Build a trainer that takes the answers as sampled, and notes what it computes."""

    class Given(trl.GRPOTrainer):  # type: ignore[misc]
        losses: list[float]
        advantages: list[float]

        def _generate_single_turn(self, *args: object, **options: object) -> Any:
            return [list(ids) for ids in answers], None

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            self.advantages = scored["advantages"].tolist()
            return scored

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            self.losses.append(float(loss.detach()))
            return loss

    Given.losses = []
    rewards = [reward for group in case["rewards"] for reward in group]
    settings = {"per_device_train_batch_size": len(rewards), "beta": 0.0} | case["args"]
    return Given(
        reward_funcs=lambda **options: rewards,
        args=trl.GRPOConfig(
            output_dir=folder,
            num_generations=ANSWERS,
            max_completion_length=LONGEST,
            max_steps=case["args"].get("num_iterations", 1),
            shuffle_dataset=False,
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            bf16=False,
            **QUIET,
            **settings,
        ),
        **more,
    )


class Notes(TrainerCallback):
    """Note every tensor's gradient before it is used, as two numbers, and what the step measured.

    The second number is the product with cos(0), cos(1), ...: another gradient of the same norm
    has another one.
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self.updates: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **options: Any) -> None:
        metrics = self.trainer._metrics["train"]
        gradient = {}
        for name, parameter in model.named_parameters():
            flat = parameter.grad.double().flatten()
            product = (flat * torch.arange(len(flat)).double().cos()).sum()
            gradient[name] = [shortened(flat.norm().item()), shortened(product.item())]
        update = {"loss": shortened(sum(self.trainer.losses)), "gradient": gradient}
        for ours, theirs in {"kl": "kl", "clip_ratio": "clip_ratio/region_mean"}.items():
            # One value of each micro-batch; of several, means over them are no mean over tokens.
            if len(metrics.get(theirs, [])) == 1 + len(self.updates):
                update[ours] = shortened(metrics[theirs][-1])
        self.updates.append(update)
        self.trainer.losses.clear()


def shortened(value: float) -> float:
    """Keep seven digits."""
    return float(f"{value:.7g}")


def run(case: dict[str, Any], config: Any, drawn: dict[str, list[int]]) -> dict[str, Any]:
    """Let TRL do the updates of a case."""
    chosen = case["prompts"]
    prompts, groups = asked(), answered(case["length"])
    given = [ids for number in chosen for ids in groups[number]]
    torch.manual_seed(0)
    notes = Notes()
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        # The reference is read from where the model came from.
        filled(config, drawn, REFERENCE_SCALE).save_pretrained(folder)
        model = filled(config, drawn)
        model.config._name_or_path = folder
        words = [" ".join(map(str, prompts[number])) for number in chosen]
        trainer = make_trainer(
            folder,
            case,
            given,
            model=model,
            train_dataset=Dataset.from_dict({"prompt": words}),
            processing_class=numbers(SHAPE["vocab_size"]),
            callbacks=[notes],
        )
        notes.trainer = trainer
        trainer.train()
    return {
        "args": case["args"],
        "prompts": [prompts[number] for number in chosen],
        "rewards": case["rewards"],
        "answers": given,
        "advantages": [shortened(value) for value in trainer.advantages],
        "updates": notes.updates,
    }


def main() -> None:
    """Write what TRL computes of every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = LlamaConfig(**SHAPE)
    drawn = weights(config)
    found = {}
    for name, changes in CASES.items():
        case = {"rewards": MIXED, "length": None, "prompts": [*range(PROMPTS)]} | changes
        found[name] = run(case, config, drawn)
        print(f"{name}: {[update['loss'] for update in found[name]['updates']]}", flush=True)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    text = {
        "made_by": f"python bench/trl_steps.py {options.out}",
        "versions": versions | {"torch": torch.__version__},
        "config": {"model_type": "llama"} | SHAPE,
        "thousandths": drawn,
        "reference_scale": REFERENCE_SCALE,
        "rate": RATE,
        "longest": LONGEST,
        "cases": found,
    }
    options.out.write_text(json.dumps(text, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
