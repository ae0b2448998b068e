"""Other settings of what controls GRPO, over the seeds of `bench/learning.py`.

A control that was tuned less than what it controls is a weak one. So each alternative begins where
the job's arm of a seed began, spends what that spent, and answers the same problems; none was
chosen on them.

    python bench/alternatives.py [--seeds 11 12 13 14 15] [--runs runs/learning] [--only NAME ...]
        [--out bench/results/alternatives.json]

The runs of `bench/learning.py` must be there. What is done already is not done again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import machine
from learning import difference, numbers
from rich.console import Console

from ziphius.recipes import teacher
from ziphius.recipes.arms import TEACHER, Asked, measure_arms, read_arms
from ziphius.recipes.comparison import BEST, SLICES, WAYS, best_way, compare, figures
from ziphius.recipes.family import FamilyRun, run_family, stages_of
from ziphius.recipes.family_settings import FamilySettings
from ziphius.recipes.job import Job
from ziphius.recipes.lengths import LENGTHS_FILE, read_lengths
from ziphius.recipes.stages import StageResult
from ziphius.train.run import RunContext


class Alternative(NamedTuple):
    """One arm with other settings."""

    stage: str
    begin: Callable[[Job, Path], StageResult]
    inputs: tuple[str, ...]
    changes: dict[str, Any]
    """Of `StageSettings`."""


ALTERNATIVES = {
    "RFT, 6 rounds": Alternative(
        "rft", teacher.reject_and_fine_tune, ("sft", "grpo"), {"rft_rounds": 6}
    ),
    "RFT, twice the rate": Alternative(
        "rft", teacher.reject_and_fine_tune, ("sft", "grpo"), {"rft_rate": 3e-3}
    ),
}
"""By name."""


def main() -> None:
    """Train the alternatives, ask them, and hold them against the job's own arms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--only", nargs="+", choices=ALTERNATIVES, default=list(ALTERNATIVES))
    parser.add_argument("--out", type=Path, default=Path("bench/results/alternatives.json"))
    options = parser.parse_args()
    lengths = read_lengths(options.runs / LENGTHS_FILE)
    own: list[dict[str, Asked]] = []
    spent: dict[str, list[float | None]] = {name: [] for name in options.only}
    for seed in options.seeds:
        folder = options.runs / f"seed-{seed}"
        run = run_family(FamilySettings(lengths=lengths, seed=seed), folder, Console(stderr=True))
        asked = read_arms(folder)
        for name in options.only:
            found, flops = one(name, run, options.runs / "alternatives" / f"seed-{seed}")
            asked[name] = found
            spent[name].append(flops)
        own.append(asked)
    document = {
        "machine": machine.describe(),
        "command": " ".join(["python", *sys.argv]),
        "seeds": options.seeds,
        "alternatives": {name: against(own, name, spent[name]) for name in options.only},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["alternatives"], indent=1))


def one(name: str, run: FamilyRun, runs: Path) -> tuple[Asked, float | None]:
    """Train an alternative from where its arm began, and ask it; return its FLOPs too."""
    chosen = ALTERNATIVES[name]
    stages = run.settings.stages.model_copy(update=chosen.changes)
    settings = run.settings.model_copy(update={"stages": stages})
    folder = runs / name.replace(" ", "-").replace(",", "").lower()
    context = RunContext(console=Console(stderr=True))
    job = Job(settings, folder, stages_of(settings), context, dict(run.stages))
    job.do(chosen.stage, chosen.begin, *chosen.inputs)
    result = job.stages[chosen.stage]
    [asked] = measure_arms(FamilyRun(settings, folder, {chosen.stage: result})).values()
    return asked, result.flops


def against(seeds: list[dict[str, Asked]], name: str, flops: list[float | None]) -> dict[str, Any]:
    """Hold an alternative against GRPO and RFT as the job runs them."""
    return {
        "changes": ALTERNATIVES[name].changes,
        "flops": flops,
        "best_way": best_way(seeds, name),
        "accuracy": {
            way: {part: numbers(figures(seeds, name, way, part)) for part in SLICES} for way in WAYS
        },
        "less_than_the_jobs": [
            difference(compare(seeds, ours, name, part, way))
            for ours in (TEACHER, "RFT")
            for part in SLICES
            for way in (BEST, *WAYS)
        ],
    }


if __name__ == "__main__":
    main()
