"""One GRPO step against TRL's GRPOTrainer: `make bench-rl`.

A step is 16 prompts of 32 tokens, 8 completions of 64 tokens each, one update, no reference, on the
shape `bench-v3` with random weights. "price" is how many times as long a step with exact
log-probabilities takes. Ours is the stage, the stepper and the optimizer of a run. TRL
has an environment of its own; without one its arms are left out. Run nothing else meanwhile.

    python bench/rl.py [--trl PYTHON] [--rounds 5] [--out bench/results/rl.json]

PYTHON is the interpreter of an environment with trl, transformers and torch.
"""

import argparse
import atexit
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import machine
import torch
import turns

from ziphius.models.config import ModelConfig
from ziphius.tasks import Problem
from ziphius.text.tokenizer import Tokenizer

PROMPTS, COMPLETIONS, NEW_TOKENS, PROMPT_TOKENS = 16, 8, 64, 32
TOKENS = PROMPTS * COMPLETIONS * (PROMPT_TOKENS + NEW_TOKENS)
WARMUP_STEPS, STEPS_PER_TURN = 2, 1
OURS = {"ziphius fp32": "float32", "ziphius bf16": "bfloat16"}
EXACT = {f"{name}, exact log-probabilities": name for name in OURS}
"""Our arms that pay for it, and those that do not."""
TRL = {"trl fp32": "float32", "trl bf16": "bfloat16"}


class Ours:
    """Our stage, stepped as the loop steps it."""

    def __init__(
        self,
        dtype: str,
        *,
        shape: ModelConfig | None = None,
        device: torch.device | None = None,
        prompts: int = PROMPTS,
        exact_logprobs: bool = False,
    ) -> None:
        from ziphius.core.memory import keep_freed_memory
        from ziphius.dist.world import ALONE
        from ziphius.models.model import Model
        from ziphius.models.presets import get_preset
        from ziphius.rl import rollout_batch
        from ziphius.rl.grpo import GrpoStage
        from ziphius.rl.settings import GrpoConfig, GrpoTraining
        from ziphius.rollout.config import RolloutConfig
        from ziphius.tasks import TASKS
        from ziphius.text.vocabulary import deepseek_tokenizer
        from ziphius.train.guard import Guard
        from ziphius.train.loop import fast_float32, same_numbers_each_time
        from ziphius.train.optim import build_optimizer
        from ziphius.train.step import Stepper

        shape = shape or get_preset("bench-v3")
        device = device or torch.device("cpu")
        model = Model(shape)
        model.initialize(seed=0)
        model.to(device)
        tokenizer = deepseek_tokenizer(shape.vocab_size)
        problems = _problems(tokenizer, prompts)
        silent: Any = Silent()
        TASKS["silent"] = silent
        rollout_batch.reward = lambda rollout, format_bonus: even_share(rollout.token_ids)
        config = GrpoConfig(
            rollout=RolloutConfig(num_generations=COMPLETIONS, max_new_tokens=NEW_TOKENS),
            exact_logprobs=exact_logprobs,
        )
        train = GrpoTraining(
            global_batch_size=prompts * COMPLETIONS,
            dtype=dtype,
            device=device.type,
            learning_rate=1e-6,
        )
        self.stage = GrpoStage(
            model, tokenizer, lambda step, refill_round=0: problems, config, train
        )
        self.stepper = Stepper(
            self.stage,
            model.train(),
            build_optimizer(model, train.optimizer),
            train,
            guard=Guard(train.guard),
            ema=None,
            world=ALONE,
            device=device,
            dtype=getattr(torch, dtype),
            folder=Path(tempfile.gettempdir()),
        )
        self.gflop = gflop()
        self.done = 0
        keep_freed_memory()
        settings = ExitStack()  # as `train/loop.py` has them
        settings.enter_context(same_numbers_each_time(True))
        settings.enter_context(fast_float32(device))
        atexit.register(settings.close)

    def step(self) -> float:
        """Sample and learn."""
        outcome = self.stepper.run(self.done, progress=0.0, learning_rate=1e-6)
        self.done += 1
        assert outcome.metrics["sampling_logp_difference_max"] < 0.5, "the sampler is another model"
        return outcome.loss


class Silent:
    """A task without right answers: random weights give none."""

    def verify(self, problem: object, answer: str | None) -> bool:
        return False


def _problems(tokenizer: Tokenizer, prompts: int) -> list[Problem]:
    """Make questions whose prompts have just the length that is wanted."""
    from ziphius.rollout.config import RolloutConfig
    from ziphius.rollout.sample import problem_prompt, spoken_format

    def problem(text: str) -> Problem:
        return Problem(task="silent", level=1, question=text, answer="", content=text, facts={})

    def length(text: str) -> int:
        form = spoken_format(tokenizer)
        return len(problem_prompt(problem(text), tokenizer, form, RolloutConfig()).ids)

    found = []
    for number in range(prompts):
        text = chr(97 + number % 26) + "+" * (number // 26)
        while length(text) < PROMPT_TOKENS:
            text += "+" if text[-1] != "+" else str(len(text) % 10)
        assert length(text) == PROMPT_TOKENS
        found.append(problem(text))
    return found


def even_share(token_ids: Sequence[int]) -> float:
    """Reward even ids, so that no group is without a difference; `trl_arm.py` does the same."""
    return sum(token % 2 == 0 for token in token_ids) / len(token_ids)


def gflop() -> float:
    """Count the products of a step that shares nothing: a forward pass, and a training step."""
    from ziphius.models.cost import model_cost
    from ziphius.models.presets import get_preset

    flops = model_cost(get_preset("bench-v3"), context=PROMPT_TOKENS + NEW_TOKENS).flops
    return 4 / 3 * flops.training * TOKENS / 1e9


def trl_command(python: str, dtype: str) -> list[str]:
    """Say how to start an arm of TRL, which reads the shape as a config.json."""
    from ziphius.models.presets import get_preset
    from ziphius.models.published import to_published

    folder = Path(tempfile.mkdtemp(prefix="bench-rl-"))
    shape = folder / "config.json"
    shape.write_text(json.dumps(to_published(get_preset("bench-v3"))))
    script = Path(__file__).with_name("trl_arm.py")
    sizes = map(str, (PROMPTS, COMPLETIONS, PROMPT_TOKENS, NEW_TOKENS))
    return [python, str(script), str(shape), dtype, str(gflop()), *sizes]


def has_trl(python: str | None) -> bool:
    """Tell whether an interpreter has TRL, and say so if it has not."""
    if python is None:
        print("TRL is left out: name an interpreter that has it with --trl PYTHON")
        return False
    found = subprocess.run([python, "-c", "import trl"], capture_output=True, text=True)
    if found.returncode:
        print(f"TRL is left out: {python} cannot import it ({found.stderr.strip()[-200:]})")
    return not found.returncode


def main() -> None:
    """Run the benchmark, or one arm of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--trl", help="interpreter of an environment with trl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/rl.json"))
    parser.add_argument("--only", default="", help="run only the arms whose name contains this")
    options = parser.parse_args()
    if options.arm:
        usual = EXACT.get(options.arm, options.arm)
        build = partial(Ours, OURS[usual], exact_logprobs=options.arm in EXACT)
        turns.serve(build, warmup=WARMUP_STEPS, steps=STEPS_PER_TURN)
        return
    commands = {name: [sys.executable, __file__, "--arm", name] for name in (*OURS, *EXACT)}
    if has_trl(options.trl):
        commands |= {name: trl_command(options.trl, dtype) for name, dtype in TRL.items()}
    processes = []
    for name, command in commands.items():
        if options.only in name:
            processes.append(turns.Process(name, command))
            print(f"ready: {name} ({processes[-1].facts['set_up_s']:.0f} s)", flush=True)
    turns.take_turns(processes, options.rounds)
    rows = {process.name: process.row(TOKENS) for process in processes}
    result = {
        "machine": machine.describe() | {"peak_gflop_per_s": machine.matrix_peaks()},
        "shape": {
            "preset": "bench-v3",
            "prompts": PROMPTS,
            "completions": COMPLETIONS,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
        },
        "rounds": options.rounds,
        "arms": rows,
        "ratios": {
            f"{ours} over {theirs}": round(rows[theirs]["ms"] / rows[ours]["ms"], 3)
            for ours in OURS
            for theirs in TRL
            if ours in rows and theirs in rows
        },
    }
    times = {process.name: process.times for process in processes}
    result["price"] = {
        exact: round(statistics.median(map(truediv, times[exact], times[usual])), 3)  # of a round
        for exact, usual in EXACT.items()
        if exact in rows and usual in rows
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:38} {row['ms']:9} ms {row['tokens_per_s']:9} tok/s {row['gflop_per_s']:7}")
    print(json.dumps(result["ratios"] | result["price"], indent=1))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
