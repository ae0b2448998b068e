"""What the main job teaches, over several seeds: `make bench-learning`.

Every seed is one whole `ziphius run`, from text to report, in a process of its own, one after the
other. Run nothing else meanwhile: the budget is time. Figures are of the mixed held-out set; a
spread is the smallest and largest of the seeds, an interval is the 95 % interval of one seed.

    python bench/learning.py [--seeds 0 1 2] [--budget 15m] [--runs runs/learning]
        [--out bench/results/learning.json] [--page docs/lab/PAGE.md]

A run that is there already is not done again, so an interrupted benchmark goes on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine

MIXED = "mixed held-out set"
GOAL = ("GRPO", "control")
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One promise of the main job, and how a result is held to it."""

    text: str
    figure: Callable[[Result], float]
    holds: Callable[[Result], bool]
    unit: str


def gain(result: Result, ours: str = GOAL[0], theirs: str = GOAL[1]) -> list[float]:
    """Return the paired difference of two arms on the mixed set, with its interval."""
    found = {
        (one["slice"], one["ours"], one["theirs"]): one["pass_at_1"]
        for one in result["differences"]
    }
    # Without room there is no GRPO, and so no gain.
    return list(found.get((MIXED, ours, theirs), [0.0, 0.0, 0.0]))


def kept(result: Result) -> float:
    """Return the share of GRPO's pass@1 that R1-Lite keeps."""
    [share] = [one["kept"][0] for one in result["taught"] if one["kept"]]
    return float(share)


def lost(result: Result) -> float:
    """Return what INT8 loses in pass@1; below 0 it loses nothing."""
    [difference] = [one["lost"][0] for one in result["taught"] if one["lost"]]
    return -float(difference)


def teacher(result: Result) -> str:
    """Name the arm that taught R1-Lite."""
    [name] = [one["teacher"] for one in result["taught"] if one["student"] == "R1-Lite"]
    return str(name)


def speedup(result: Result) -> float:
    """Return the student's tokens per second over the teacher's."""
    arms = result["arms"]
    return float(arms["R1-Lite"]["tokens_per_s"] / arms[teacher(result)]["tokens_per_s"])


def share_of_parameters(result: Result) -> float:
    """Return the student's parameters over the teacher's."""
    arms = result["arms"]
    return float(arms["R1-Lite"]["parameters"] / arms[teacher(result)]["parameters"])


GOALS = (
    Goal(
        "GRPO - control, points of pass@1; the interval above 0",
        lambda r: 100 * gain(r)[0],
        lambda r: gain(r)[1] > 0,
        "",
    ),
    Goal(
        "R1-Lite keeps of GRPO's pass@1; >= 85",
        lambda r: 100 * kept(r),
        lambda r: kept(r) >= 0.85,
        "%",
    ),
    Goal(
        "R1-Lite's parameters; <= 33.3",
        lambda r: 100 * share_of_parameters(r),
        lambda r: share_of_parameters(r) <= 1 / 3,
        "%",
    ),
    Goal("R1-Lite's tokens/s over GRPO's; >= 3", speedup, lambda r: speedup(r) >= 3, "x"),
    Goal("INT8 loses, points; <= 2", lambda r: 100 * lost(r), lambda r: lost(r) <= 0.02, ""),
    Goal("minutes; <= 15", lambda r: r["wall_s"] / 60, lambda r: r["wall_s"] <= 900, ""),
    Goal("peak GiB; <= 4", lambda r: r["peak_gib"], lambda r: r["peak_gib"] <= 4, ""),
)


def main() -> None:
    """Run the seeds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="15m")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/learning.json"))
    parser.add_argument("--page", type=Path, help="Markdown page to write beside the JSON")
    options = parser.parse_args()
    results = {
        seed: one_run(seed, options.budget, options.runs / f"seed-{seed}") for seed in options.seeds
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary(results, options.budget), indent=1) + "\n")
    text = page(results)
    if options.page:
        options.page.write_text(text)
    print(text)


def one_run(seed: int, budget: str, folder: Path) -> dict[str, Any]:
    """Do one run, or read what an earlier one left."""
    kept_at = folder.with_suffix(".json")
    if kept_at.exists():
        kept = dict(json.loads(kept_at.read_text()))
        if kept["settings"]["budget"] != budget:
            raise SystemExit(f"{kept_at} is of the budget {kept['settings']['budget']}: remove it.")
        return kept
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}: {folder}", flush=True)
    started = time.monotonic()
    words = ["run", "--budget", budget, "--seed", str(seed), "--out", str(folder), "--json"]
    log_path, out_path = folder.with_suffix(".log"), folder.with_suffix(".out")
    with log_path.open("w") as log, out_path.open("w") as out:
        command = [sys.executable, "-m", "ziphius.cli.main", *words]
        process = subprocess.Popen(command, stdout=out, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"seed {seed} ended with status {status}; see {log_path}")
    result = {
        **json.loads(out_path.read_text()),
        "wall_s": round(time.monotonic() - started, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }
    kept_at.write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(results: Mapping[int, Result], budget: str) -> dict[str, Any]:
    """Put the seeds and their spread into one document."""
    return {
        "machine": machine.describe(),
        "budget": budget,
        "seeds": {
            seed: {
                "arms": {
                    name: {"pass_at_1": arm["slices"][MIXED]["pass_at_1"]}
                    for name, arm in result["arms"].items()
                },
                "grpo_less_control": gain(result),
                "goals": {
                    goal.text: {
                        "figure": round(goal.figure(result), 4),
                        "holds": goal.holds(result),
                    }
                    for goal in GOALS
                },
            }
            for seed, result in results.items()
        },
        "spread": {goal.text: spread([goal.figure(r) for r in results.values()]) for goal in GOALS},
        "all_hold": all(goal.holds(result) for goal in GOALS for result in results.values()),
    }


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Return mean, smallest and largest."""
    found = {"mean": statistics.fmean(figures), "low": min(figures), "high": max(figures)}
    return {name: round(value, 4) for name, value in found.items()}


def page(results: Mapping[int, Result]) -> str:
    """Write tables for a page of docs/lab."""
    seeds = [f"seed {seed}" for seed in results]
    rule = row(*["---"] * (len(seeds) + 2))
    lines = [row("", *seeds, "mean"), rule]
    for goal in GOALS:
        cells = [
            f"{goal.figure(result):.3g}{goal.unit}{'' if goal.holds(result) else ' **no**'}"
            for result in results.values()
        ]
        mean = statistics.fmean(goal.figure(result) for result in results.values())
        lines.append(row(goal.text, *cells, f"{mean:.3g}{goal.unit}"))
    intervals = [f"{100 * gain(r)[1]:+.1f} to {100 * gain(r)[2]:+.1f}" for r in results.values()]
    lines.append(row("GRPO - control, 95 % interval", *intervals, ""))
    lines += ["", row("pass@1 in %, mixed", *seeds, "mean"), rule]
    for name in next(iter(results.values()))["arms"]:
        slices = [result["arms"][name]["slices"][MIXED] for result in results.values()]
        shares = [100 * one["pass_at_1"][0] for one in slices]
        lines.append(row(name, *(f"{x:.1f}" for x in shares), f"{statistics.fmean(shares):.1f}"))
    return "\n".join(lines) + "\n"


def row(*cells: str) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
