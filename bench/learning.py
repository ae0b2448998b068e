"""What the main job teaches, over several seeds: `make bench-learning`.

Every seed is one whole `ziphius run`, from text to report, in a process of its own, all with the
same steps. Nothing was chosen on these seeds: settings were found on others, of which 0, 1 and 2
were whole runs.
Run nothing else meanwhile: time and speed are reported beside the figures. Of several runs at once
each has its share of the cores: all together end sooner, and no time is that of a run alone.

    python bench/learning.py [--seeds 11 12 13 14 15] [--at-once 1] [--lengths FILE]
        [--runs runs/learning] [--out bench/results/learning.json] [--page docs/lab/PAGE.md]

A run that is there already is not done again, so an interrupted benchmark goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine

from ziphius.evals.intervals import Estimate
from ziphius.evals.summary import share_over_seeds
from ziphius.recipes.arms import CONTROLS, TEACHER, read_arms
from ziphius.recipes.comparison import (
    BEST,
    MIXED,
    SLICES,
    WAYS,
    Compared,
    Seeds,
    against_controls,
    best_control,
    best_way,
    compare,
    figures,
)
from ziphius.recipes.lengths import LENGTHS_FILE, StageLengths

MODE, FIGURE = WAYS["think first"]


def main() -> None:
    """Run the seeds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other")
    parser.add_argument("--lengths", type=Path, help="of another run; the defaults without one")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/learning.json"))
    parser.add_argument("--page", type=Path, help="Markdown tables to write beside the JSON")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    lengths = options.lengths or _default_lengths(options.runs)
    folders = {seed: options.runs / f"seed-{seed}" for seed in options.seeds}
    threads = max(1, (os.cpu_count() or 1) // options.at_once)

    def run(seed: int) -> dict[str, Any]:
        return one_run(seed, lengths, folders[seed], threads)

    with ThreadPoolExecutor(options.at_once) as pool:
        results = dict(zip(folders, pool.map(run, folders), strict=True))
    asked = [read_arms(folder) for folder in folders.values()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = summary(asked, results) | {
        "command": " ".join(["python", *sys.argv]),
        "runs_at_once": options.at_once,
        "threads_of_a_run": threads,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    text = page(asked, results)
    if options.page:
        options.page.write_text(text)
    print(text)


def _default_lengths(runs: Path) -> Path:
    path = runs / LENGTHS_FILE
    document = {"budget": "15m", "lengths": StageLengths().model_dump()}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def one_run(seed: int, lengths: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Do one run on so many threads, or read what an earlier one left."""
    kept_at = folder.with_suffix(".json")
    if kept_at.exists():
        return dict(json.loads(kept_at.read_text()))
    print(f"seed {seed}: {folder}", flush=True)
    started = time.monotonic()
    words = ["run", "--lengths", str(lengths), "--seed", str(seed), "--out", str(folder), "--json"]
    log_path, out_path = folder.with_suffix(".log"), folder.with_suffix(".out")
    with log_path.open("w") as log, out_path.open("w") as out:
        command = [sys.executable, "-m", "ziphius.cli.main", *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
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


def summary(asked: Seeds, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Put seeds and intervals over seeds into one document."""
    return {
        "machine": machine.describe(),
        "seeds": list(results),
        "settings": next(iter(results.values()))["settings"],
        "best_control": best_control(asked),
        "best_ways": {name: best_way(asked, name) for name in (TEACHER, *CONTROLS)},
        "differences": [difference(one) for one in against_controls(asked)],
        "students": [difference(one) for one in students(asked)],
        "kept": _kept(asked),
        "accuracy": {
            name: {
                way: {part: numbers(figures(asked, name, way, part)) for part in SLICES}
                for way in WAYS
            }
            for name in asked[0]
        },
        "runs": {
            seed: {
                "wall_s": result["wall_s"],
                "peak_gib": result["peak_gib"],
                "stages": {
                    name: {key: stage[key] for key in ("seconds", "tokens", "flops")}
                    for name, stage in result["stages"].items()
                },
                "arms": {
                    name: {
                        key: arm[key]
                        for key in (
                            "parameters",
                            "active_parameters",
                            "flops_per_token",
                            "dtype",
                            "tokens_per_s",
                            "size_bytes",
                            "training_flops",
                        )
                    }
                    for name, arm in result["arms"].items()
                },
            }
            for seed, result in results.items()
        },
    }


def students(asked: Seeds) -> list[Compared]:
    """Compare the student with its controls, and its forms in other numbers with it."""
    pairs = [
        ("R1-Lite", "student alone"),
        ("R1-Lite", "R1-Lite by logits"),
        ("R1-Lite", TEACHER),
        ("R1-Lite INT8", "R1-Lite bf16"),
        ("R1-Lite INT8", "R1-Lite"),
    ]
    return [
        compare(asked, ours, theirs, MIXED, way)
        for ours, theirs in pairs
        if all({ours, theirs} <= one.keys() for one in asked)
        for way in WAYS
    ]


def _kept(asked: Seeds) -> list[float] | None:
    """Return the share of the teacher's accuracy that R1-Lite keeps, over seeds."""
    ours, theirs = ([one[name].test[MODE] for one in asked] for name in ("R1-Lite", TEACHER))
    found = share_over_seeds(ours, theirs, FIGURE, slices=SLICES[MIXED])
    return None if found is None else numbers(found)


def numbers(found: Estimate) -> list[float]:
    """Round a figure and the ends of its interval."""
    return [round(value, 5) for value in (found.value, found.low, found.high)]


def difference(one: Compared) -> dict[str, Any]:
    """Turn a comparison into what JSON holds."""
    return {
        "slice": one.slice,
        "ours": one.ours,
        "theirs": one.theirs,
        "way": one.way,
        "ways": one.ways,
        "difference": numbers(one.estimate),
        "by_seed": [round(value, 5) for value in one.by_seed],
    }


def page(asked: Seeds, results: dict[int, dict[str, Any]]) -> str:
    """Write tables for a page of docs/lab."""
    seeds = [f"seed {seed}" for seed in results]
    best = best_control(asked)
    ways = ", ".join(f"{name}: {best_way(asked, name)}" for name in (TEACHER, *CONTROLS))
    lines = [f"Best control on development problems: {best}. Best ways: {ways}.", ""]
    lines += [row("GRPO less", "slice", "asked", *seeds, "all seeds [95 %]"), _rule(len(seeds) + 4)]
    lines += [_difference_row(one) for one in against_controls(asked)]
    lines += ["", row("student", "less", "asked", *seeds, "all seeds [95 %]")]
    lines += [_rule(len(seeds) + 4)]
    lines += [_difference_row(one, third=one.theirs, first=one.ours) for one in students(asked)]
    for part in SLICES:
        lines += ["", row(f"accuracy in %, {part}", *WAYS), _rule(len(WAYS) + 1)]
        for name in asked[0]:
            found = [figures(asked, name, way, part) for way in WAYS]
            cells = [f"{100 * f.value:.1f} [{100 * f.low:.0f}, {100 * f.high:.0f}]" for f in found]
            lines.append(row(name, *cells))
    lines += ["", row("", *seeds), _rule(len(seeds) + 1)]
    lines.append(row("minutes", *(f"{r['wall_s'] / 60:.1f}" for r in results.values())))
    lines.append(row("peak GiB", *(f"{r['peak_gib']:.2f}" for r in results.values())))
    for name in ("grpo", "more-sft", "rft"):
        stages = [r["stages"][name] for r in results.values()]
        cells = [f"{s['seconds']:.0f} s, {s['flops']:.2e} FLOPs" for s in stages]
        lines.append(row(name, *cells))
    return "\n".join(lines) + "\n"


def _difference_row(one: Compared, first: str | None = None, third: str | None = None) -> str:
    way = f"{BEST} ({one.ways[0]}; {one.ways[1]})" if one.way == BEST else one.way
    found = one.estimate
    pooled = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    seeds = [f"{100 * value:+.1f}" for value in one.by_seed]
    return row(first or one.theirs, third or one.slice, way, *seeds, pooled)


def _rule(cells: int) -> str:
    return row(*["---"] * cells)


def row(*cells: str) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
