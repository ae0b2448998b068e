"""The figures of a finished run, put where its report expects them."""

import json
from collections.abc import Mapping, Sequence

import torch

from ziphius.core.files import write_file
from ziphius.evals.majority import majority_class
from ziphius.evals.measure import Measurement
from ziphius.evals.speed import decode_tokens_per_s
from ziphius.evals.summary import paired_difference, paired_share, summarize, summarize_slices
from ziphius.models.cost import count_parameters, model_cost
from ziphius.recipes.arms import (
    ARMS,
    CONTROLS,
    TEACHER,
    Asked,
    load_arm,
    present,
    rollout_config,
    size_bytes,
    weights_of,
)
from ziphius.recipes.comparison import (
    BEST,
    MIXED,
    SLICES,
    WAYS,
    Compared,
    against_controls,
    best_control,
    best_way,
    compare,
    figures,
)
from ziphius.recipes.compute import refuse_unequal
from ziphius.recipes.family import FamilyRun
from ziphius.recipes.report.sections import (
    Arm,
    ArmReplies,
    AskedRow,
    Baseline,
    Difference,
    Reply,
    Taught,
    Transcript,
)
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.tasks import get_task

K = 8
STUDENT_CONTROL = "student alone"
SHOWN_PROBLEMS = 2
"""Of each slice, among the transcripts."""
WAY = "think first"
MODE = WAYS[WAY][0]
"""In which students, sizes and lengths are compared, at temperature 1."""
LEAST_KEPT, MOST_PARAMETERS, LEAST_SPEED, MOST_LOST = 0.85, 1 / 3, 3.0, 0.02
"""What R1-Lite was to keep of its teacher, at which size and speed; what INT8 may lose."""


def refuse_unequal_controls(run: FamilyRun) -> None:
    """Refuse a run in which a control had less compute than GRPO."""
    if not run.stages["grpo"].is_usable:
        return
    spent = {
        name: run.stages[ARMS[name].stage].flops or 0.0
        for name in CONTROLS
        if name != "SFT"
        and ARMS[name].stage in run.stages
        and run.stages[ARMS[name].stage].is_usable
    }
    refuse_unequal(run.stages["grpo"].flops or 0.0, spent)


def build_arms(run: FamilyRun, asked: Mapping[str, Asked]) -> tuple[Arm, ...]:
    """Put what is known of every arm together."""
    speeds = decode_speeds(run, list(asked))
    return tuple(_arm(run, name, found.test[MODE], speeds[name]) for name, found in asked.items())


def _arm(run: FamilyRun, name: str, measurement: Measurement, speed: float) -> Arm:
    arm = ARMS[name]
    stage = run.stages[arm.stage]
    model, _ = load_arm(run, name)
    parameters = count_parameters(model.config)
    is_wide = arm.dtype == torch.float32
    costs = model_cost(
        model.config, context=run.settings.seq_len, dtype="float32" if is_wide else "bfloat16"
    )
    known = [run.stages[part] for part in arm.path if part in run.stages]
    first = summarize(measurement, k=K, name=MIXED, slices=SLICES[MIXED])
    return Arm(
        name,
        arm.description.format(teacher=run.teacher),
        (first, *summarize_slices(measurement, k=K)),
        parameters=parameters.main,
        active_parameters=parameters.active,
        flops_per_token=costs.flops.decode,
        dtype="int8" if arm.stage.endswith("int8") else str(arm.dtype).removeprefix("torch."),
        tokens_per_s=speed,
        cache_bytes_per_token=costs.cache_bytes.own,
        size_bytes=size_bytes(stage) if is_wide else size_bytes(stage) // 2,
        training_flops=sum(part.flops or 0.0 for part in known),
        training_s=sum(part.seconds for part in known),
        way=WAY,
        start="SFT" if name in (TEACHER, *CONTROLS) and name != "SFT" else "",
        stages=arm.path,
    )


def decode_speeds(run: FamilyRun, names: Sequence[str]) -> dict[str, float]:
    """Measure how fast the arms decode, in turns, or read what was measured before."""
    path = run.folder / "measurements" / "speeds.json"
    identity = {
        name: f"{weights_of(run.stages[ARMS[name].stage])} {ARMS[name].dtype}" for name in names
    }
    if path.exists():
        kept = json.loads(path.read_bytes())
        if kept["weights"] == identity:
            return dict(kept["tokens_per_s"])
    models = [load_arm(run, name)[0] for name in names]
    speeds = decode_tokens_per_s(models, run.settings.lengths.speed_rounds)
    found = dict(zip(names, speeds, strict=True))
    write_file(path, json.dumps({"weights": identity, "tokens_per_s": found}, indent=1) + "\n")
    return found


def build_asked(asked: Mapping[str, Asked]) -> tuple[AskedRow, ...]:
    """List every arm in every way; the best way is known of the arms that are compared in it."""
    rows = []
    for name, found in asked.items():
        best = best_way([asked], name) if found.development else None
        rows += [
            AskedRow(
                name,
                way,
                {part: figures([asked], name, way, part) for part in SLICES},
                is_best=way == best,
            )
            for way in WAYS
        ]
    return tuple(rows)


def build_baselines(run: FamilyRun) -> tuple[Baseline, ...]:
    """Give the most frequent training answer of each task and level to its measured problems."""
    settings, found = run.settings, []
    for choice in (*settings.trained, *settings.harder):
        task = get_task(choice.name)
        train = task.problems("train", choice.level, settings.problems, settings.seed)
        test = task.problems("test", choice.level, settings.lengths.measured, settings.seed)
        answer = majority_class([problem.answer for problem in train])
        accuracy = sum(task.verify(problem, answer) for problem in test) / len(test)
        found.append(Baseline(choice.name, choice.level, answer, accuracy))
    return tuple(found)


def build_differences(asked: Mapping[str, Asked]) -> tuple[Difference, ...]:
    """Compare GRPO with every control in every way, and the students with their control."""
    found = []
    if TEACHER in asked:
        best = best_control([asked])
        found = [_difference(one, best=best) for one in against_controls([asked])]
    for ours, theirs in (("R1-Lite", STUDENT_CONTROL), ("R1-Lite", "R1-Lite by logits")):
        if {ours, theirs} <= asked.keys():
            found += [
                _difference(compare([asked], ours, theirs, part, way))
                for part in SLICES
                for way in WAYS
            ]
    return tuple(found)


def _difference(one: Compared, *, best: str = "") -> Difference:
    is_best = one.theirs == best
    is_students = one.theirs == STUDENT_CONTROL and one.way == WAY
    return Difference(
        one.slice,
        one.ours,
        one.theirs,
        one.estimate,
        way=one.way,
        ways=one.ways,
        by_seed=one.by_seed if len(one.by_seed) > 1 else (),
        is_goal=one.slice == MIXED and (is_students or (is_best and one.way == BEST)),
        is_best_control=is_best,
    )


def build_taught(asked: Mapping[str, Asked], teacher: str) -> tuple[Taught, ...]:
    """Hold the student to what it was to keep of its teacher, and INT8 to what it may lose."""
    found = []
    test = {name: one.test[MODE] for name, one in asked.items()}
    both = SLICES[MIXED]
    if {teacher, "R1-Lite"} <= test.keys():
        found.append(
            Taught(
                "R1-Lite",
                teacher,
                slice=MIXED,
                way=WAY,
                kept=paired_share(test["R1-Lite"], test[teacher], slices=both),
                least_kept=LEAST_KEPT,
                most_parameters=MOST_PARAMETERS,
                least_speed=LEAST_SPEED,
            )
        )
    for full in ("R1-Lite bf16", "R1-Lite"):
        if {full, "R1-Lite INT8"} <= test.keys():
            lost = paired_difference(test["R1-Lite INT8"], test[full], slices=both)
            found.append(
                Taught("R1-Lite INT8", full, slice=MIXED, way=WAY, lost=lost, most_lost=MOST_LOST)
            )
    return tuple(found)


def build_transcripts(run: FamilyRun) -> tuple[Transcript, ...]:
    """Let every arm answer a few problems of each slice again, to be read side by side."""
    shown = {
        name: list(problems)[:: max(1, len(problems) // SHOWN_PROBLEMS)][:SHOWN_PROBLEMS]
        for name, problems in run.problems("test").items()
    }
    asked = [problem for problems in shown.values() for problem in problems]
    replies: dict[str, list[ArmReplies]] = {problem.key: [] for problem in asked}
    rollout = rollout_config(run.settings, MODE)
    for name in present(run):
        engine = RolloutEngine(*load_arm(run, name))
        groups = sample_groups(engine, asked, rollout, seed=run.settings.seed + 2)
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
