"""The arms of the main job: models measured on the same problems, and what they say to some."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ziphius.core.files import write_file
from ziphius.evals.keeping import kept_measurement
from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, Measurement, measure
from ziphius.evals.speed import decode_tokens_per_s
from ziphius.evals.summary import paired_difference, paired_share, summarize, summarize_slices
from ziphius.models.account import account, count_parameters
from ziphius.models.model import Model
from ziphius.models.weights import load
from ziphius.recipes.family import FamilyRun
from ziphius.recipes.report.sections import (
    Arm,
    ArmReplies,
    Difference,
    Reply,
    Taught,
    Transcript,
)
from ziphius.recipes.stages import StageResult, sum_of
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

MIXED = "mixed held-out set"
TRAINED = (IN_DISTRIBUTION, HARDER)
K = 8
ARMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "SFT": ("sft", "fine-tuned on demonstrations of mixed quality", ("pretrain", "sft")),
    "control": (
        "control",
        "fine-tuned on for the time that GRPO took",
        ("pretrain", "sft", "control"),
    ),
    "GRPO": ("grpo", "practised with verified rewards", ("pretrain", "sft", "grpo")),
    "R1-Lite": (
        "r1-lite",
        "dense student, taught verified answers of {teacher}",
        ("pretrain", "sft", "grpo", "traces", "r1-lite"),
    ),
    "R1-Lite by logits": (
        "r1-lite-logits",
        "the same student, taught the probabilities of {teacher}",
        ("pretrain", "sft", "grpo", "traces", "r1-lite-logits"),
    ),
    "R1-Lite INT8": (
        "r1-lite-int8",
        "R1-Lite with INT8 weights and activations",
        ("pretrain", "sft", "grpo", "traces", "r1-lite", "r1-lite-int8"),
    ),
}
"""By name: the stage that made it, what was done, and every stage that led to it."""

SHOWN_PROBLEMS = 2
"""Of each slice, among the transcripts."""


def present(run: FamilyRun) -> list[str]:
    """Name the arms whose stages made a model, in their order."""
    return [
        name
        for name, (stage, _, _) in ARMS.items()
        if stage in run.stages and run.stages[stage].checkpoint is not None
    ]


def measure_arms(run: FamilyRun) -> dict[str, Measurement]:
    """Measure every arm, or read what was measured before."""
    found = {}
    for name in present(run):
        stage = run.stages[ARMS[name][0]]
        path = run.folder / "measurements" / f"{stage.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = {
            "weights": _weights_of(stage),
            "keys": [problem.key for part in run.problems.values() for problem in part],
            "rollout": run.rollout.model_dump(mode="json"),
            "seed": run.settings.seed,
        }

        def sampled(stage: StageResult = stage) -> Measurement:
            model, tokenizer = _loaded(stage)
            return measure(model, tokenizer, run.problems, run.rollout, seed=run.settings.seed + 1)

        found[name] = kept_measurement(path, identity, sampled)
    return found


def build_arms(run: FamilyRun, measured: Mapping[str, Measurement]) -> tuple[Arm, ...]:
    """Put the figures of every arm together."""
    arms = []
    speeds = decode_speeds(run, list(measured))
    for name, measurement in measured.items():
        stage_name, description, path = ARMS[name]
        stage = run.stages[stage_name]
        model, _ = _loaded(stage)
        parameters = count_parameters(model.config)
        known = [run.stages[part] for part in path if part in run.stages]
        first = summarize(measurement, k=K, name=MIXED, slices=TRAINED)
        arms.append(
            Arm(
                name,
                description.format(teacher=run.teacher),
                (first, *summarize_slices(measurement, k=K)),
                parameters=parameters.main,
                active_parameters=parameters.active,
                tokens_per_s=speeds[name],
                cache_bytes_per_token=account(
                    model.config, context=run.settings.context, dtype="float32"
                ).cache_bytes.own,
                size_bytes=_size_bytes(stage),
                training_flops=sum(part.flops or 0.0 for part in known),
                training_s=sum(part.seconds for part in known),
            )
        )
    return tuple(arms)


def decode_speeds(run: FamilyRun, names: Sequence[str]) -> dict[str, float]:
    """Measure how fast the arms decode, in turns, or read what was measured before."""
    path = run.folder / "measurements" / "speeds.json"
    stages = [run.stages[ARMS[name][0]] for name in names]
    identity = dict(zip(names, map(_weights_of, stages), strict=True))
    if path.exists():
        kept = json.loads(path.read_bytes())
        if kept["weights"] == identity:
            return dict(kept["tokens_per_s"])
    speeds = decode_tokens_per_s([_loaded(stage)[0] for stage in stages])
    found = dict(zip(names, speeds, strict=True))
    write_file(path, json.dumps({"weights": identity, "tokens_per_s": found}, indent=1) + "\n")
    return found


def build_differences(measured: Mapping[str, Measurement]) -> tuple[Difference, ...]:
    """Compare GRPO with its control and with its start, and the two ways to teach a student."""
    pairs = [("GRPO", "control"), ("GRPO", "SFT"), ("R1-Lite", "R1-Lite by logits")]
    found = []
    for ours, theirs in pairs:
        if ours in measured and theirs in measured:
            slices = {MIXED: TRAINED} | {name: (name,) for name in measured[ours].slices}
            for name, chosen in slices.items():
                estimate = paired_difference(measured[ours], measured[theirs], slices=chosen)
                is_goal = name == MIXED and theirs == "control"
                found.append(Difference(name, ours, theirs, estimate, is_goal=is_goal))
    return tuple(found)


def build_taught(measured: Mapping[str, Measurement], teacher: str) -> tuple[Taught, ...]:
    """Hold the student to what it was to keep of its teacher, and INT8 to what it may lose."""
    found = []
    if {teacher, "R1-Lite"} <= measured.keys():
        kept = paired_share(measured["R1-Lite"], measured[teacher], slices=TRAINED)
        found.append(
            Taught(
                "R1-Lite",
                teacher,
                kept=kept,
                least_kept=0.85,
                most_parameters=1 / 3,
                least_speed=3.0,
            )
        )
    if {"R1-Lite", "R1-Lite INT8"} <= measured.keys():
        lost = paired_difference(measured["R1-Lite INT8"], measured["R1-Lite"], slices=TRAINED)
        found.append(Taught("R1-Lite INT8", "R1-Lite", lost=lost, most_lost=0.02))
    return tuple(found)


def build_transcripts(run: FamilyRun) -> tuple[Transcript, ...]:
    """Let every arm answer a few problems of each slice again, to be read side by side."""
    shown = {
        name: list(problems)[:: max(1, len(problems) // SHOWN_PROBLEMS)][:SHOWN_PROBLEMS]
        for name, problems in run.problems.items()
    }
    asked = [problem for problems in shown.values() for problem in problems]
    replies: dict[str, list[ArmReplies]] = {problem.key: [] for problem in asked}
    for name in present(run):
        model, tokenizer = _loaded(run.stages[ARMS[name][0]])
        groups = sample_groups(model, tokenizer, asked, run.rollout, seed=run.settings.seed + 2)
        for problem, group in zip(asked, groups, strict=True):
            replies[problem.key].append(_replies(name, group))
    return tuple(
        Transcript(name, problem.question, problem.answer, tuple(replies[problem.key]))
        for name, problems in shown.items()
        for problem in problems
    )


def _replies(arm: str, group: Sequence[Rollout]) -> ArmReplies:
    right = [rollout for rollout in group if rollout.is_correct]
    wrong = [rollout for rollout in group if not rollout.is_correct]
    return ArmReplies(arm, len(right), len(group), _reply(right), _reply(wrong))


def _reply(rollouts: Sequence[Rollout]) -> Reply | None:
    if not rollouts:
        return None
    chosen = rollouts[0]
    return Reply(chosen.reasoning, chosen.answer, len(chosen.token_ids))


def _loaded(stage: StageResult) -> tuple[Model, Tokenizer]:
    assert stage.checkpoint is not None
    return load(stage.checkpoint), load_tokenizer(stage.checkpoint)


def _weights_of(stage: StageResult) -> str:
    assert stage.checkpoint is not None
    return sum_of(stage.checkpoint, "*.safetensors")


def _size_bytes(stage: StageResult) -> int:
    assert stage.checkpoint is not None
    return sum(path.stat().st_size for path in Path(stage.checkpoint).glob("*.safetensors"))
