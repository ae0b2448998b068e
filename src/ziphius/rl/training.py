"""A whole run of GRPO as one function: model, problems, stage, loop; parallel to `run_sft`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.dist.world import local_device
from ziphius.models.model import Model
from ziphius.models.weights import load
from ziphius.rl.grpo import GrpoStage
from ziphius.rl.headroom import Headroom, check_headroom
from ziphius.rl.problems import ProblemMix
from ziphius.rl.settings import GrpoSettings
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import problem_prompt, spoken_format
from ziphius.tasks import Problem
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.train.checkpoint import CHECKPOINTS
from ziphius.train.run import PLAIN, Finished, RunContext, refuse_longer_rows, run_built_stage


def run_grpo(settings: GrpoSettings, folder: Path, context: RunContext = PLAIN) -> Finished:
    """Train a model on its own verified answers, or go on where the folder has a checkpoint.

    Args:
        settings: of the run.
        folder: of the run.
        context: how the run was called.

    Raises:
        NoHeadroomError: before the first step, of a model that has nothing to gain.
    """
    if settings.model is None or not settings.tasks:
        raise ConfigError(f"Give {' and '.join(settings.missing)}.")
    config, rollout = settings.train, settings.grpo.rollout
    device = local_device(resolve_device(config.device))
    tokenizer = load_tokenizer(settings.model)
    problems = ProblemMix(
        settings.tasks,
        per_step=config.global_batch_size // rollout.num_generations,
        pool=settings.pool,
        seed=config.seed,
    )
    held_out = ProblemMix(
        settings.tasks,
        per_step=1,
        pool=settings.validation_problems,
        seed=config.seed,
        split="validation",
    ).all()
    model = load(settings.model, dtype=torch.float32).to(device)
    # What is not trained shall not decay either, on however many processes.
    for layer in model.model.mtp_layers:
        layer.requires_grad_(False)
    longest = longest_prompt([*problems.all(), *held_out], tokenizer, rollout)
    config = config.model_copy(update={"seq_len": longest + rollout.max_new_tokens})
    refuse_longer_rows(model, config, " with grpo.rollout.max_new_tokens")
    headroom = _headroom(settings, problems, model, tokenizer, folder)
    stage = GrpoStage(
        model,
        tokenizer,
        problems,
        settings.grpo,
        config,
        validation=held_out,
        data_fingerprint=problems.fingerprint(),
        world=context.world,
    )
    return run_built_stage(
        settings,
        folder,
        context,
        config=config,
        model=model,
        tokenizer=tokenizer,
        stage=stage,
        text=_described(settings, problems.per_step, headroom, stage),
    )


def _described(
    settings: GrpoSettings, per_step: int, headroom: Headroom | None, stage: GrpoStage
) -> str:
    """Say what a run practises, and where its answers do not come from a native program."""
    kinds = ", ".join(f"{choice.name} {choice.level}" for choice in settings.tasks)
    size = settings.grpo.rollout.num_generations
    text = f"{per_step} problems x {size} completions a step, of {kinds}"
    if headroom is not None:
        text += f"; before the start {headroom}"
    stage.engine.update_weights()
    if stage.engine.not_native is not None:
        text += f". Answers are sampled by the modules, slower: {stage.engine.not_native}"
    return f"{text}."


def longest_prompt(problems: Sequence[Problem], tokenizer: Tokenizer, config: RolloutConfig) -> int:
    """Return the tokens of the longest prompt."""
    chat_format = spoken_format(tokenizer)
    return max(
        len(problem_prompt(problem, tokenizer, chat_format, config).ids) for problem in problems
    )


def _headroom(
    settings: GrpoSettings,
    problems: ProblemMix,
    model: Model,
    tokenizer: Tokenizer,
    folder: Path,
) -> Headroom | None:
    """Measure what there is to gain, where the run begins; every rank finds the same."""
    if not settings.headroom_problems or (folder / CHECKPOINTS).exists():
        return None
    everything, count = problems.all(), settings.headroom_problems
    chosen = everything[:: max(1, len(everything) // count)][:count]
    return check_headroom(model, tokenizer, chosen, settings.grpo.rollout, seed=settings.train.seed)
