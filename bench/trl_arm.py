"""TRL's GRPOTrainer as an arm of `bench/rl.py`, run by an interpreter that has TRL and not us.

python bench/trl_arm.py CONFIG_JSON DTYPE GFLOP PROMPTS COMPLETIONS PROMPT_TOKENS NEW_TOKENS
"""

import importlib
import os
import random
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import torch
import turns
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

trl: Any = importlib.import_module("trl")  # in an environment of its own
END = 1
QUIET: dict[str, Any] = {
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "report_to": [],
}
"""Settings of every arm: on the CPU, and nothing written but what the arm says."""


class Trl:
    """A trainer that waits before every step until it is asked for it."""

    def __init__(self, shape: str, dtype: str, gflop: float, sizes: list[int]) -> None:
        prompts, completions, prompt_tokens, new_tokens = sizes
        self.gflop = gflop
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        config = AutoConfig.from_pretrained(Path(shape).parent)
        config.eos_token_id, config.pad_token_id = END, 0
        build: Any = AutoModelForCausalLM.from_config  # has no types
        model = build(config)
        words = random.Random(0)
        texts = [
            " ".join(str(words.randrange(2, config.vocab_size)) for _ in range(prompt_tokens))
            for _ in range(prompts)
        ]
        self.trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=even_shares,
            args=trl.GRPOConfig(
                output_dir=tempfile.mkdtemp(prefix="trl-"),
                per_device_train_batch_size=prompts * completions,
                num_generations=completions,
                max_completion_length=new_tokens,
                max_steps=100_000,
                learning_rate=1e-6,
                beta=0.0,
                temperature=1.0,
                bf16=dtype == "bfloat16",
                **QUIET,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts * 100}),
            processing_class=numbers(config.vocab_size),
            callbacks=[_Waits(self)],
        )
        threading.Thread(target=self._train, daemon=True).start()

    def step(self) -> float:
        """Let the trainer do one step."""
        self.go.release()
        self.done.acquire()
        return 0.0

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException:
            traceback.print_exc()
            os._exit(1)


class _Waits(TrainerCallback):
    def __init__(self, arm: Trl) -> None:
        self.arm = arm

    def on_step_begin(self, *args: object, **options: object) -> None:
        self.arm.go.acquire()

    def on_step_end(self, *args: object, **options: object) -> None:
        self.arm.done.release()


def even_shares(completion_ids: list[list[int]], **options: object) -> list[float]:
    """Reward even ids, as `rl.py` does."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def numbers(vocab_size: int) -> Any:
    """Make a tokenizer whose words are the ids."""
    words = {str(number): number for number in range(vocab_size)}
    words = {"<pad>": 0, "<end>": END} | {w: n for w, n in words.items() if n > 1}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    build: Any = PreTrainedTokenizerFast  # has no types
    return build(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    shape, dtype, gflop, *sizes = sys.argv[1:]
    turns.serve(lambda: Trl(shape, dtype, float(gflop), list(map(int, sizes))), warmup=2, steps=1)
