"""The arms of the main job: models asked the same problems in several modes.

What is measured is kept per problem and sample, so that every comparison is made later, and none
is sampled again: `recipes/comparison.py` compares.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ziphius.evals.keeping import kept_measurement, read_measurement
from ziphius.evals.measure import Measurement, measure
from ziphius.models.model import Model
from ziphius.models.weights import load
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.recipes.family import FamilyRun
from ziphius.recipes.family_settings import FamilySettings
from ziphius.recipes.stages import StageResult, sum_of
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.tasks import Split
from ziphius.text.tokenizer import Tokenizer, load_tokenizer


class ArmKind(NamedTuple):
    """What an arm is."""

    stage: str
    """That made its model."""
    description: str
    path: tuple[str, ...]
    """Every stage that led to it."""
    dtype: torch.dtype = torch.float32
    """Numbers that it answers in."""


_START = ("pretrain", "sft")
_STUDENT = (*_START, "grpo", "traces")
ARMS: dict[str, ArmKind] = {
    "SFT": ArmKind("sft", "fine-tuned on the demonstrations", _START),
    "more SFT": ArmKind("more-sft", "fine-tuned on, for the FLOPs of GRPO", (*_START, "more-sft")),
    "RFT": ArmKind(
        "rft", "fine-tuned on its own right answers, for the FLOPs of GRPO", (*_START, "rft")
    ),
    "GRPO": ArmKind("grpo", "practised with verified rewards", (*_START, "grpo")),
    "R1-Lite": ArmKind(
        "r1-lite", "dense student, taught verified answers of {teacher}", (*_STUDENT, "r1-lite")
    ),
    "R1-Lite by logits": ArmKind(
        "r1-lite-logits",
        "the same student, taught the probabilities of {teacher}",
        (*_STUDENT, "r1-lite-logits"),
    ),
    "student alone": ArmKind(
        "r1-lite-alone",
        "the same student, taught the demonstrator's answers to the same problems",
        ("r1-lite-alone",),
    ),
    "R1-Lite bf16": ArmKind(
        "r1-lite", "R1-Lite in bfloat16", (*_STUDENT, "r1-lite"), torch.bfloat16
    ),
    "R1-Lite INT8": ArmKind(
        "r1-lite-int8",
        "R1-Lite with INT8 weights and activations",
        (*_STUDENT, "r1-lite", "r1-lite-int8"),
    ),
}
"""By name, in the order of tables."""

TEACHER, CONTROLS = "GRPO", ("SFT", "more SFT", "RFT")
"""The arm that the run is about, and those that it has to beat."""
MODES: dict[str, str] = {
    "sampled": "as trained, at temperature 1",
    "thinking": "with the think block opened for it, at temperature 1",
    "cool": "with the think block opened for it, at temperature 0.4",
    "greedy": "with the think block opened for it, always the likeliest token",
}
"""How arms are asked, by name. `cool` is there because what reinforcement learning gives at
temperature 1 may be no more than a lower temperature gives to the model that it began with."""
COOL = 0.4
"""Of 0.8, 0.6, 0.4 and 0 the best for fine-tuned models, on development problems (docs/lab)."""
MEASUREMENTS = "measurements"
"""Folder of a run in which they are kept."""
DEVELOPMENT_SHARE = 0.5
"""Of the problems of the test, as many of the validation split choose each arm's best mode."""


@dataclass(frozen=True)
class Asked:
    """The answers of one arm, by mode."""

    test: Mapping[str, Measurement]
    development: Mapping[str, Measurement]
    """Of other problems, which choose the arm's best mode and stand in no figure; empty for arms
    that are not compared in it."""


def rollout_config(settings: FamilySettings, mode: str) -> RolloutConfig:
    """Return how a mode samples."""
    is_greedy = mode == "greedy"
    temperature = {"greedy": 0.0, "cool": COOL}.get(mode, 1.0)
    return RolloutConfig(
        num_generations=1 if is_greedy else settings.samples,
        max_new_tokens=settings.longest_answer,
        thinking=mode != "sampled",
        sampling=SamplingConfig(temperature=temperature),
    )


def present(run: FamilyRun) -> list[str]:
    """Name the arms whose stages made a model, in their order."""
    return [
        name
        for name, arm in ARMS.items()
        if arm.stage in run.stages and run.stages[arm.stage].checkpoint is not None
    ]


def measure_arms(run: FamilyRun) -> dict[str, Asked]:
    """Ask every arm in every mode, or read what was measured before."""
    found = {}
    for name in present(run):
        is_compared = name == TEACHER or name in CONTROLS
        engine = functools.cache(functools.partial(_engine, run, name))
        found[name] = Asked(
            {mode: _measured(run, name, mode, "test", engine) for mode in MODES},
            {mode: _measured(run, name, mode, "validation", engine) for mode in MODES}
            if is_compared
            else {},
        )
    return found


def read_arms(folder: Path) -> dict[str, Asked]:
    """Read what a finished run has measured.

    Args:
        folder: of the run.

    Raises:
        EvalError: a measurement cannot be read.
    """
    splits: dict[str, dict[str, dict[str, Measurement]]] = {"test": {}, "validation": {}}
    for split, arms in splits.items():
        for path in sorted((folder / MEASUREMENTS / split).glob("*.json")):
            found = read_measurement(path).measurement
            arms.setdefault(found.arm, {})[found.mode] = found
    return {
        name: Asked(splits["test"][name], splits["validation"].get(name, {}))
        for name in ARMS
        if name in splits["test"]
    }


def load_arm(run: FamilyRun, name: str) -> tuple[Model, Tokenizer]:
    """Load the model of an arm in its own numbers, and the tokenizer."""
    arm = ARMS[name]
    checkpoint = run.stages[arm.stage].checkpoint
    assert checkpoint is not None
    is_int8 = arm.stage.endswith("int8")
    model = load(checkpoint) if is_int8 else load(checkpoint, dtype=arm.dtype)
    return model, load_tokenizer(checkpoint)


def weights_of(stage: StageResult) -> str:
    """Name the weights that a stage made, by content."""
    assert stage.checkpoint is not None
    return sum_of(stage.checkpoint, "*.safetensors")


def _engine(run: FamilyRun, name: str) -> RolloutEngine:
    return RolloutEngine(*load_arm(run, name))


def _measured(
    run: FamilyRun, name: str, mode: str, split: Split, engine: Callable[[], RolloutEngine]
) -> Measurement:
    stage = run.stages[ARMS[name].stage]
    share = 1.0 if split == "test" else DEVELOPMENT_SHARE
    problems = run.problems(split, share)
    rollout, seed = rollout_config(run.settings, mode), run.settings.seed + 1
    identity = {
        "arm": name,
        "mode": mode,
        "weights": weights_of(stage),
        "dtype": str(ARMS[name].dtype),
        "keys": [problem.key for part in problems.values() for problem in part],
        "rollout": rollout.model_dump(mode="json"),
        "seed": seed,
    }

    def sampled() -> Measurement:
        return measure(engine(), problems, rollout, seed=seed, arm=name, mode=mode)

    folder = run.folder / MEASUREMENTS / split
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '-').lower()}.{mode}.json"
    return kept_measurement(path, identity, sampled)


def size_bytes(stage: StageResult) -> int:
    """Return the bytes of the weights that a stage made."""
    assert stage.checkpoint is not None
    return sum(path.stat().st_size for path in Path(stage.checkpoint).glob("*.safetensors"))
