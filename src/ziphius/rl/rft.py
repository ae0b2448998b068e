"""Rejection-sampled fine-tuning (RFT): sample, keep what is right, fine-tune on it, again.

Sources: STaR (arXiv 2203.14465), RFT (arXiv 2308.01825), expert iteration. The control of GRPO that
has the same problems and the same verifier: it learns from right answers alone, a round at a time,
by the cross-entropy of fine-tuning. No loop of its own: each round is a run of `train/finetuning`.

A round's folder holds `traces.jsonl`, what was kept; `sampled.json`, written after it, what it was
sampled from and how; and the run. A round that is there is not done again.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.core.files import write_file
from ziphius.dist.world import local_device
from ziphius.models.weights import load
from ziphius.rl.problems import ProblemMix
from ziphius.rl.rft_config import RftSettings
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.rollout.traces import TraceConfig, Traces, select_traces, write_traces
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.budget import parse_budget
from ziphius.train.finetuning import run_sft
from ziphius.train.loop import fast_float32
from ziphius.train.plan import planned_steps
from ziphius.train.run import PLAIN, Finished, RunContext
from ziphius.train.settings import SftSettings

GROUPS_AT_ONCE = 32
"""Problems of a batch, of which a round samples whole ones."""
TRACES_FILE, SAMPLED_FILE = "traces.jsonl", "sampled.json"


class NoRightAnswersError(ConfigError):
    """A round sampled nothing to learn from: the message says which one."""


@dataclass(frozen=True)
class Sampled:
    """What one round sampled and kept."""

    tokens: int
    completions: int
    correct: int
    kept: int
    groups: int
    """Drawn so far over all rounds: where the next round goes on."""
    seconds: float = field(default=0.0, compare=False)
    """Of sampling."""


@dataclass(frozen=True)
class RftResult:
    """What a run made."""

    last: Finished
    """The training of the last round, with the trained tokens of all of them and the seconds of
    sampling and training."""
    rounds: tuple[Sampled, ...]


def run_rft(settings: RftSettings, folder: Path, context: RunContext = PLAIN) -> RftResult:
    """Do the rounds that are not done yet.

    Args:
        settings: of the run.
        folder: of the run.
        context: how the run was called; one process.

    Raises:
        ConfigError: something is missing, or the folder holds rounds of other settings.
        NoRightAnswersError: no answer of a round was right.
    """
    if settings.model is None or not settings.tasks:
        raise ConfigError(f"Give {' and '.join(settings.missing)}.")
    if context.world.size > 1:
        raise ConfigError(
            f"{context.world.size} processes: rejection-sampled fine-tuning runs in one. Start it "
            "without torchrun."
        )
    problems = ProblemMix(
        settings.tasks, per_step=GROUPS_AT_ONCE, pool=settings.pool, seed=settings.train.seed
    )
    context.claim()
    context = replace(context, claim=PLAIN.claim)  # the runs of the rounds are in the same folder
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
        seconds=sum(one.result.seconds for one in trained) + sum(one.seconds for one in rounds),
    )
    return RftResult(replace(trained[-1], result=total), tuple(rounds))


def _sample(
    settings: RftSettings, problems: ProblemMix, source: Path, place: Path, before: list[Sampled]
) -> Sampled:
    """Sample a round and write what is kept, unless that is there."""
    path, identity = place / SAMPLED_FILE, _identity(settings, problems, source)
    if path.exists():
        return _read(path, identity)
    place.mkdir(parents=True, exist_ok=True)
    first = before[-1].groups if before else 0
    wanted = settings.sampled_tokens * (len(before) + 1) // settings.rounds
    wanted -= sum(earlier.tokens for earlier in before)
    started = time.perf_counter()
    groups = _groups(settings, problems, source, first, wanted)
    seconds = time.perf_counter() - started
    config = TraceConfig(per_problem=settings.answers_kept, choice="random")
    kept = select_traces(groups, config, seed=settings.train.seed)
    _refuse_without_answers(kept, len(before) + 1, source)
    write_traces(place / TRACES_FILE, kept)
    completions = [rollout for group in groups for rollout in group]
    sampled = Sampled(
        tokens=sum(len(rollout.token_ids) for rollout in completions),
        completions=len(completions),
        correct=sum(rollout.is_correct for rollout in completions),
        kept=len(kept.kept),
        seconds=seconds,
        groups=first + len(groups),
    )
    write_file(path, json.dumps({"identity": identity, "sampled": asdict(sampled)}) + "\n")
    return sampled


def _groups(
    settings: RftSettings, problems: ProblemMix, source: Path, first: int, tokens: int
) -> list[list[Rollout]]:
    """Sample groups, `GROUPS_AT_ONCE` in a batch and one batch at least, until tokens suffice."""
    device = local_device(resolve_device(settings.train.device))
    model = load(source, dtype=torch.float32).to(device)
    engine = RolloutEngine(model, load_tokenizer(source))
    sampled: list[list[Rollout]] = []
    with fast_float32(device):
        while not sampled or _tokens(sampled) < tokens:
            number = first + len(sampled)
            sampled += sample_groups(
                engine,
                problems(number // GROUPS_AT_ONCE),
                settings.rollout,
                seed=settings.train.seed,
                first_sequence_id=number * settings.rollout.num_generations,
            )
    return sampled


def _tokens(groups: Sequence[Sequence[Rollout]]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group)


def _refuse_without_answers(traces: Traces, number: int, source: Path) -> None:
    """Raise a NoRightAnswersError where a round has nothing to learn from."""
    if not traces.kept:
        raise NoRightAnswersError(
            f"Round {number}: of {sum(traces.dropped.values()):,} answers of {source} to "
            f"{traces.problems:,} problems none is right, so there is nothing to learn from. Give "
            "easier tasks, more sampled_tokens, or a model that was fine-tuned for longer."
        )


def _identity(settings: RftSettings, problems: ProblemMix, source: Path) -> dict[str, Any]:
    """Name all that the answers of a round hang on, and which of them are kept."""
    digest = hashlib.sha256()
    for file in sorted(source.glob("*.safetensors")) if source.is_dir() else [source]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {
        "model": digest.hexdigest(),
        "problems": problems.fingerprint(),
        "rollout": settings.rollout.model_dump(mode="json", exclude={"sequences_at_once"}),
        "rounds": settings.rounds,
        "sampled_tokens": settings.sampled_tokens,
        "answers_kept": settings.answers_kept,
        "seed": settings.train.seed,
    }


def _read(path: Path, identity: Mapping[str, Any]) -> Sampled:
    """Read what a round sampled.

    Raises:
        ConfigError: it cannot be read, or was sampled otherwise.
    """
    try:
        document = json.loads(path.read_bytes())
        kept, sampled = document["identity"], Sampled(**document["sampled"])
        changed = [name for name in identity if kept.get(name) != identity[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove {path.parent} and what comes after it."
        ) from error
    if changed:
        raise ConfigError(
            f"{path.parent} holds a round of another run ({', '.join(changed)} differ): choose "
            "another folder, or remove it."
        )
    return sampled


def _training(settings: RftSettings, model: Path, folder: Path, number: int) -> SftSettings:
    """Return the fine-tuning of a round."""
    first = 0 if settings.keeps_rounds else number
    traces = [folder / f"round-{one + 1}" / TRACES_FILE for one in range(first, number + 1)]
    config, rounds = settings.train, settings.rounds
    steps = planned_steps(parse_budget(config.budget), config.batch_sizes, config.seq_len)
    assert steps is not None, "a budget of time is refused"
    share = max(1, steps * (number + 1) // rounds - steps * number // rounds)
    return SftSettings(
        model=model,
        data=(*traces, *settings.demonstrations),
        epochs=0,
        thinking=settings.rollout.thinking,
        train=config.model_copy(
            update={"budget": f"{share}-steps", "seed": config.seed + number},
        ),
        instruments=settings.instruments,
    )
