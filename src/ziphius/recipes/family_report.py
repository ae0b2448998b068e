"""The report of the main job: figures of its stages and arms, put where the page expects them."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import ziphius
from ziphius.core.device import resolve_device, resolve_dtype
from ziphius.core.files import write_file
from ziphius.recipes.arms import DEVELOPMENT_SHARE, measure_arms
from ziphius.recipes.family import FamilyRun
from ziphius.recipes.figures import (
    build_arms,
    build_asked,
    build_baselines,
    build_differences,
    build_taught,
    build_transcripts,
    refuse_unequal_controls,
)
from ziphius.recipes.report.page import write_report
from ziphius.recipes.report.sections import (
    Arm,
    ExpertLoad,
    Learning,
    LossCurve,
    Report,
    StageCost,
)
from ziphius.train.records import read_metrics
from ziphius.train.summary import RESULT_FILE

REPORT_FILE = "report.html"
LOADS_SHOWN = 60
"""Steps of the map of expert loads, averaged from all."""


def report_family(run: FamilyRun, *, command: str) -> tuple[Report, Path]:
    """Measure what is not measured yet, and write report.html and result.json.

    Raises:
        UnequalComputeError: a control had less compute than it is said to have.
    """
    refuse_unequal_controls(run)
    asked = measure_arms(run)
    measured_s = sum(
        one.seconds
        for arm in asked.values()
        for split in (arm.test, arm.development)
        for one in split.values()
    )
    base, demonstrations = run.settings.base, run.settings.demonstrations
    made = (
        "A mixture-of-experts model of DeepSeek-V3's make, pretrained on real text"
        if base is None
        else f"The published model {base}"
    )
    report = Report(
        title=f"From {'real text' if base is None else base} to a reasoning model",
        purpose=(
            f"{made}, fine-tuned on chain-of-thought demonstrations, trained with verified "
            "rewards, distilled into a dense student and quantized to INT8, by one command."
        ),
        arms=build_arms(run, asked),
        asked=build_asked(asked),
        baselines=build_baselines(run),
        differences=build_differences(asked),
        losses=tuple(_losses(run)),
        learning=_learning(run),
        experts=_experts(run),
        transcripts=build_transcripts(run),
        taught=build_taught(asked, run.teacher),
        costs=(*_costs(run), StageCost("measuring", measured_s)),
        machine=tuple(machine(command)),
        notes=(
            "Demonstrations are of the easier level alone: the traces of a search in random "
            "order, as a demonstrator makes them who can take every step and does not know "
            f"which comes first; {100 * demonstrations.cot:.0f} % show their steps.",
            "GRPO and RFT practise both levels with the same problems and the same verifier; "
            "rewards are correctness alone. Each control began where GRPO began and spent at "
            "least its FLOPs.",
            f"The best mode of an arm, and the best control, are chosen on "
            f"{DEVELOPMENT_SHARE:.0%} as many other problems, on which no figure here is made.",
            "Problems of the splits differ in what has to be found, not only in wording; "
            "intervals of one run leave out what another seed would have made.",
        ),
        failures=tuple(stage.note for stage in run.stages.values() if not stage.is_usable),
        reasons=_reasons(run),
    )
    path = run.folder / REPORT_FILE
    write_report(report, path)
    write_file(run.folder / RESULT_FILE, json.dumps(document(run, report), indent=1) + "\n")
    return report, path


def _reasons(run: FamilyRun) -> dict[str, str]:
    """Say why a run without reinforcement learning compares nothing."""
    grpo = run.stages["grpo"]
    return {} if grpo.is_usable else {"differences": grpo.note, "learning": grpo.note}


def document(run: FamilyRun, report: Report) -> dict[str, Any]:
    """Return the result for scripts, JSON-serialisable."""
    return {
        "recipe": run.settings.recipe,
        "settings": run.settings.model_dump(mode="json"),
        "stages": {
            name: {
                "seconds": stage.seconds,
                "tokens": stage.tokens,
                "flops": stage.flops,
                "peak_memory_bytes": stage.peak_memory_bytes,
                "checkpoint": None if stage.checkpoint is None else str(stage.checkpoint),
                "note": stage.note,
            }
            for name, stage in run.stages.items()
        },
        "arms": {arm.name: _arm(arm) for arm in report.arms},
        "differences": [
            {
                "slice": one.slice,
                "ours": one.ours,
                "theirs": one.theirs,
                "way": one.way,
                "ways": list(one.ways),
                "is_best_control": one.is_best_control,
                "difference": [one.estimate.value, one.estimate.low, one.estimate.high],
            }
            for one in report.differences
        ],
        "asked": [
            {
                "arm": row.arm,
                "way": row.way,
                "is_best": row.is_best,
                "accuracy": {
                    name: [found.value, found.low, found.high]
                    for name, found in row.figures.items()
                },
            }
            for row in report.asked
        ],
        "baselines": [
            {"task": b.task, "level": b.level, "answer": b.answer, "accuracy": b.accuracy}
            for b in report.baselines
        ],
        "taught": [
            {
                "student": one.student,
                "teacher": one.teacher,
                "kept": one.kept and [one.kept.value, one.kept.low, one.kept.high],
                "lost": one.lost and [one.lost.value, one.lost.low, one.lost.high],
            }
            for one in report.taught
        ],
        "machine": dict(report.machine),
    }


def machine(command: str) -> Iterable[tuple[str, str]]:
    """Name what the figures were made on and with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    yield "command", command
    yield "processor", f"{cpu}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        yield "accelerator", torch.cuda.get_device_name()
    yield "system", f"{platform.system()} {platform.release()}"
    yield "Python", platform.python_version()
    yield "ziphius", ziphius.__version__
    for package in ("torch", "reasoning-gym"):
        yield package, importlib.metadata.version(package)


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "slices": {
            one.name: {
                "pass_at_1": [one.pass_at_1.value, one.pass_at_1.low, one.pass_at_1.high],
                f"pass_at_{one.k}": [one.pass_at_k.value, one.pass_at_k.low, one.pass_at_k.high],
                "tokens": one.tokens.value,
                "corrections": one.corrections.value,
                "truncated": one.truncated,
            }
            for one in arm.slices
        },
        "parameters": arm.parameters,
        "active_parameters": arm.active_parameters,
        "flops_per_token": arm.flops_per_token,
        "dtype": arm.dtype,
        "tokens_per_s": arm.tokens_per_s,
        "cache_bytes_per_token": arm.cache_bytes_per_token,
        "size_bytes": arm.size_bytes,
        "training_flops": arm.training_flops,
        "training_s": arm.training_s,
    }


def _losses(run: FamilyRun) -> Iterable[LossCurve]:
    for name in ("pretrain", "sft", "more-sft", "r1-lite", "r1-lite-logits", "r1-lite-alone"):
        if name not in run.stages:
            continue
        folder = run.stages[name].folder
        entries = list(read_metrics(folder))
        steps = [entry for entry in entries if entry["kind"] == "step"]
        held_out = [entry for entry in entries if entry["kind"] == "validation"]
        yield LossCurve(
            name,
            [entry["step"] for entry in steps],
            [entry["terms"].get("next_token", entry["loss"]) for entry in steps],
            [entry["step"] for entry in held_out],
            [entry["figures"]["loss"] for entry in held_out],
            run.stages[name].baselines,
        )


def _learning(run: FamilyRun) -> Learning | None:
    if "grpo" not in run.stages:
        return None
    steps = [e for e in read_metrics(run.stages["grpo"].folder) if e["kind"] == "step"]
    if not steps:
        return None
    dtype = resolve_dtype(run.settings.stages.dtype, resolve_device("auto"))
    return Learning(
        [entry["step"] for entry in steps],
        reward=[entry["terms"]["reward"] for entry in steps],
        tokens=[entry["terms"]["completions/mean_length"] for entry in steps],
        frac_reward_zero_std=[entry["terms"]["frac_reward_zero_std"] for entry in steps],
        sampling_logp_difference=[
            entry["terms"]["sampling_logp_difference_max"] for entry in steps
        ],
        logprob_bound=1e-5 if dtype == torch.float32 else 0.1,
    )


def _experts(run: FamilyRun) -> ExpertLoad | None:
    if "pretrain" not in run.stages:
        return None
    entries = [e for e in read_metrics(run.stages["pretrain"].folder) if e["kind"] == "step"]
    if not entries:
        return None
    every = max(1, len(entries) // LOADS_SHOWN)
    chosen = [entries[first : first + every] for first in range(0, len(entries), every)]
    layers = entries[0]["expert_counts"]
    return ExpertLoad(
        "pretrain",
        [group[-1]["step"] for group in chosen],
        {
            int(layer): [
                [
                    sum(column)
                    for column in zip(*(e["expert_counts"][layer] for e in group), strict=True)
                ]
                for group in chosen
            ]
            for layer in layers
        },
    )


def _costs(run: FamilyRun) -> Iterable[StageCost]:
    for stage in run.stages.values():
        yield StageCost(
            stage.name,
            stage.seconds,
            stage.flops,
            stage.tokens,
            stage.peak_memory_bytes,
            stage.note,
        )
