"""The measurement of one model: problems in slices, some samples of each, verified by their tasks.

What is kept is small and complete, per problem and sample, so every figure with its interval can be
computed later, also of two measurements together, and none has to be sampled again.

Shapes: N problems.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziphius.evals.corrections import self_corrections
from ziphius.evals.errors import EvalError
from ziphius.evals.pass_at_k import pass_at_k
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, RolloutConfig, sample_groups
from ziphius.tasks import Problem

IN_DISTRIBUTION = "in distribution"
HARDER = "one step harder"
UNTRAINED = "never trained on"
"""Slices of the main job: what fine-tuning saw, one level above it, and families nobody saw."""


@dataclass(frozen=True)
class Answers:
    """What is kept of a model's samples for one problem; the tuples are one entry a sample."""

    slice: str
    task: str
    level: int
    key: str
    """`Problem.key`."""
    answers: tuple[str | None, ...]
    """What each sample answered; None if it was cut off or says nothing."""
    correct: tuple[bool, ...]
    tokens: tuple[int, ...]
    """Length of each completion, its end token included."""
    corrections: tuple[int, ...]
    """Words of self-correction in each reasoning, see `evals/corrections.py`."""
    truncated: tuple[bool, ...]
    """Whether a completion was cut off at the longest length allowed."""

    def __post_init__(self) -> None:
        """Refuse entries that do not match."""
        kept = (self.answers, self.correct, self.tokens, self.corrections, self.truncated)
        lengths = set(map(len, kept))
        if len(lengths) != 1 or 0 in lengths:
            raise EvalError(f"Problem {self.key} has no samples, or not one entry for each.")


@dataclass(frozen=True)
class Measurement:
    """A model's answers to the problems of all slices, in the order they were asked."""

    problems: tuple[Answers, ...]
    seconds: float
    """Spent on sampling them all."""
    arm: str
    """Name of the model whose weights answered."""
    mode: str
    """How it was asked, such as sampled, thinking or greedy."""

    def __post_init__(self) -> None:
        """Refuse to count a problem twice."""
        if len({answers.key for answers in self.problems}) != len(self.problems):
            raise EvalError("A problem stands twice in one measurement: it would count twice.")

    @property
    def slices(self) -> tuple[str, ...]:
        """Names of the slices, in the order they were asked."""
        return tuple(dict.fromkeys(answers.slice for answers in self.problems))

    @property
    def tokens_per_s(self) -> float:
        """Speed of sampling: tokens of all completions over the seconds it took."""
        total = sum(sum(answers.tokens) for answers in self.problems)
        return total / self.seconds if self.seconds else 0.0

    def only(self, slices: Sequence[str]) -> tuple[Answers, ...]:
        """Return the problems of some slices.

        Raises:
            EvalError: there is no such slice, or no problem in it.
        """
        if unknown := set(slices) - set(self.slices):
            known = ", ".join(self.slices) or "none"
            raise EvalError(f"No slice {sorted(unknown)[0]!r} was measured; there are: {known}.")
        return tuple(answers for answers in self.problems if answers.slice in slices)


def measure(
    engine: RolloutEngine,
    problems: Mapping[str, Sequence[Problem]],
    config: RolloutConfig,
    *,
    seed: int,
    arm: str,
    mode: str,
) -> Measurement:
    """Sample answers to the problems of every slice, and keep what they come to.

    The draws hang on the seed and a problem's place, so two models asked the same are measured
    with the same luck, as far as two models can share it.

    Args:
        engine: of the model, for all measurements of it.
        problems: of each slice; no problem twice.
        config: `num_generations` samples of every problem.
        seed: of the draws.
        arm: name of the model.
        mode: name of the way it is asked, which `config` is.
    """
    sample = functools.partial(sample_groups, engine, config=config, seed=seed)
    return measure_by(sample, problems, arm=arm, mode=mode)


def measure_by(
    sample: Callable[[Sequence[Problem]], Sequence[Sequence[Rollout]]],
    problems: Mapping[str, Sequence[Problem]],
    *,
    arm: str,
    mode: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Measure whatever `sample` asks; it returns the answers to each problem, in their order."""
    asked = [(name, problem) for name, chosen in problems.items() for problem in chosen]
    started = clock()
    groups = sample([problem for _, problem in asked])
    seconds = clock() - started
    answered = tuple(
        _answers(name, problem, group) for (name, problem), group in zip(asked, groups, strict=True)
    )
    return Measurement(answered, seconds, arm, mode)


def _answers(slice_name: str, problem: Problem, group: Sequence[Rollout]) -> Answers:
    return Answers(
        slice_name,
        problem.task,
        problem.level,
        problem.key,
        answers=tuple(rollout.answer for rollout in group),
        correct=tuple(rollout.is_correct for rollout in group),
        tokens=tuple(len(rollout.token_ids) for rollout in group),
        corrections=tuple(self_corrections(rollout.reasoning) for rollout in group),
        truncated=tuple(rollout.finish_reason == "length" for rollout in group),
    )


def solved(problems: Sequence[Answers], k: int) -> NDArray[np.float64]:
    """Return pass@k of every problem, [N]."""
    correct = [sum(answers.correct) for answers in problems]
    return pass_at_k(correct, [len(answers.correct) for answers in problems], k)
