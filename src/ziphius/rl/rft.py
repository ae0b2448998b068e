"""Rejection-sampled fine-tuning (RFT): sample, keep what is right, fine-tune on it, again.

Sources: STaR (arXiv 2203.14465), RFT (arXiv 2308.01825), expert iteration. The control of GRPO that
has the same problems and the same verifier: it learns from right answers alone, a round at a time,
by the cross-entropy of fine-tuning. No loop of its own: each round is a run of `train/finetuning`.

A round's folder holds `traces.jsonl`, what was kept, and the run. A round that is there is not
done again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.core.files import write_file
from ziphius.dist.world import local_device
from ziphius.models.weights import load
from ziphius.rl.problems import ProblemMix
from ziphius.rl.rft_config import RftSettings
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.rollout.traces import TraceConfig, select_traces, write_traces
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.budget import parse_budget
from ziphius.train.finetuning import run_sft
from ziphius.train.run import PLAIN, Finished, RunContext
from ziphius.train.settings import SftSettings

GROUPS_AT_ONCE = 32
TRACES_FILE, SAMPLED_FILE = "traces.jsonl", "sampled.json"


@dataclass(frozen=True)
class Sampled:
    """What one round sampled and kept."""

    tokens: int
    answers: int
    correct: int
    kept: int
    groups: int
    """Drawn so far over all rounds: where the next round goes on."""


@dataclass(frozen=True)
class RftResult:
    """What a run made."""

    last: Finished
    """The training of the last round, with the tokens and seconds of all of them."""
    rounds: tuple[Sampled, ...]


def run_rft(settings: RftSettings, folder: Path, context: RunContext = PLAIN) -> RftResult:
    """Do the rounds that are not done yet.

    Args:
        settings: of the run.
        folder: of the run.
        context: how the run was called; one process.

    Raises:
        ConfigError: something is missing, or no answer of a round was right.
    """
    if settings.model is None or not settings.tasks:
        raise ConfigError(f"Give {' and '.join(settings.missing)}.")
    problems = ProblemMix(
        settings.tasks, per_step=GROUPS_AT_ONCE, pool=settings.pool, seed=settings.train.seed
    )
    model, rounds, trained = settings.model, list[Sampled](), list[Finished]()
    for number in range(settings.rounds):
        place = folder / f"round-{number + 1}"
        rounds.append(_sample(settings, problems, model, place, rounds))
        finished = run_sft(_training(settings, model, folder, number), place / "train", context)
        trained.append(finished)
        if finished.result.stopped_by is not None:
            break
        model = finished.result.checkpoint
    total = replace(
        trained[-1].result,
        tokens=sum(one.result.tokens for one in trained),
        seconds=sum(one.result.seconds for one in trained),
    )
    return RftResult(replace(trained[-1], result=total), tuple(rounds))


def _sample(
    settings: RftSettings, problems: ProblemMix, source: Path, place: Path, before: list[Sampled]
) -> Sampled:
    """Sample a round and write what is kept, unless that is there."""
    path = place / SAMPLED_FILE
    if path.exists():
        return Sampled(**json.loads(path.read_bytes()))
    place.mkdir(parents=True, exist_ok=True)
    first = before[-1].groups if before else 0
    wanted = settings.sampled_tokens * (len(before) + 1) // settings.rounds
    groups = list(
        _groups(settings, problems, source, first, wanted - sum(r.tokens for r in before))
    )
    kept = select_traces(
        groups,
        TraceConfig(per_problem=settings.answers_kept, choice="random"),
        seed=settings.train.seed,
    )
    write_traces(place / TRACES_FILE, kept)
    answers = [rollout for group in groups for rollout in group]
    sampled = Sampled(
        tokens=sum(len(rollout.token_ids) for rollout in answers),
        answers=len(answers),
        correct=sum(rollout.is_correct for rollout in answers),
        kept=len(kept.kept),
        groups=first + len(groups),
    )
    write_file(path, json.dumps(asdict(sampled)) + "\n")
    return sampled


def _groups(
    settings: RftSettings, problems: ProblemMix, source: Path, first: int, tokens: int
) -> Iterator[Sequence[Rollout]]:
    """Sample groups, `GROUPS_AT_ONCE` in a batch and one batch at least, until tokens suffice."""
    model = load(source, dtype=torch.float32)
    model.to(local_device(resolve_device(settings.train.device)))
    tokenizer = load_tokenizer(source)
    while True:
        groups = sample_groups(
            model,
            tokenizer,
            problems(first // GROUPS_AT_ONCE),
            settings.rollout,
            seed=settings.train.seed,
            first_sequence_id=first * settings.rollout.group_size,
        )
        first += len(groups)
        yield from groups
        tokens -= sum(len(rollout.token_ids) for group in groups for rollout in group)
        if tokens <= 0:
            return


def _training(settings: RftSettings, model: Path, folder: Path, number: int) -> SftSettings:
    """Return the fine-tuning of a round."""
    budget = parse_budget(settings.train.budget)
    first = 0 if settings.keeps_rounds else number
    traces = [folder / f"round-{one + 1}" / TRACES_FILE for one in range(first, number + 1)]
    share = max(1, round(budget.amount / settings.rounds))
    return SftSettings(
        model=model,
        data=(*traces, *settings.demonstrations),
        epochs=0,
        thinking=settings.rollout.thinking,
        train=settings.train.model_copy(
            update={
                "budget": f"{share}-{budget.unit}",
                "seed": settings.train.seed + number,
            }
        ),
        instruments=settings.instruments,
    )
