"""Verified answers become conversations to learn from (rejection sampling).

Sources: DeepSeek-R1 (arXiv 2501.12948), sections 2.3.3 and 2.4: a student, or the model itself, is
fine-tuned on answers that were checked, and on nothing else. Whole answers are kept as they were
written, so what is learned is reasoning and final answer as one conversation.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.core.files import write_file
from ziphius.rollout.sample import Rollout

Choice = Literal["shortest", "random"]

# Why a rollout is left out; the first that holds counts.
HELD_OUT = "problem of an evaluation"
WRONG = "wrong"
WITHOUT_REASONING = "without reasoning"
REPEATED = "said before"
BEYOND = "beyond the limit of its problem"


class TraceConfig(Config):
    """Which of the verified answers are kept."""

    per_problem: Annotated[int, Field(ge=1)] = 4
    """Answers kept of one problem, so that easy problems do not crowd out hard ones."""
    choice: Choice = "shortest"
    """Which ones, if there are more: those of the fewest tokens, or any, by the seed."""
    needs_reasoning: bool = False
    """Leave out correct answers without reasoning."""


@dataclass(frozen=True)
class Traces:
    """What was kept, and what became of the rest."""

    kept: tuple[Rollout, ...]
    """By problem, in the order the problems came in."""
    dropped: dict[str, int]
    """Number of rollouts by reason."""
    problems: int
    """Different problems that were sampled."""
    solved: int
    """Those of them that something is kept of."""

    def summary(self) -> dict[str, Any]:
        """Return the numbers, JSON-serialisable."""
        tokens = sum(len(rollout.token_ids) for rollout in self.kept)
        return {
            "kept": len(self.kept),
            "dropped": self.dropped,
            "problems": self.problems,
            "solved": self.solved,
            "mean_tokens": tokens / max(1, len(self.kept)),
            "with_reasoning": sum(bool(rollout.reasoning) for rollout in self.kept),
        }


def select_traces(
    groups: Iterable[Sequence[Rollout]],
    config: TraceConfig,
    *,
    seed: int,
    held_out: Collection[str] = (),
) -> Traces:
    """Keep verified answers, each once, and at most some of each problem.

    Args:
        groups: rollouts of a teacher; a problem may come in several groups.
        config: which ones.
        seed: of a random choice. What is chosen of a problem hangs on the seed and its own answers
            alone.
        held_out: keys (`Problem.key`) of the problems that students are measured on: nothing of
            them is kept, whatever split they were sampled from.
    """
    held_out = frozenset(held_out)
    dropped: Counter[str] = Counter()
    by_problem: dict[str, list[Rollout]] = {}
    for rollout in (rollout for group in groups for rollout in group):
        verified = by_problem.setdefault(rollout.problem.key, [])
        reason = _reason(rollout, verified, config, held_out)
        if reason is None:
            verified.append(rollout)
        else:
            dropped[reason] += 1
    kept: list[Rollout] = []
    for verified in by_problem.values():
        chosen = _choose(verified, config, seed)
        dropped[BEYOND] += len(verified) - len(chosen)
        kept += chosen
    solved = sum(bool(verified) for verified in by_problem.values())
    counts = {reason: count for reason, count in dropped.items() if count}
    return Traces(tuple(kept), counts, len(by_problem), solved)


def write_traces(path: Path, traces: Traces) -> None:
    """Write JSON Lines that `ziphius sft` reads; beside the messages: task, level, key, tokens.

    Raises:
        ConfigError: nothing was kept.
    """
    if not traces.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in traces.dropped.items())
        raise ConfigError(
            f"No answer of the teacher is left to learn from ({reasons or 'there was none'}). "
            "Sample more, or easier problems."
        )
    lines = [json.dumps(_entry(rollout), ensure_ascii=False) + "\n" for rollout in traces.kept]
    write_file(path, "".join(lines))


def _reason(
    rollout: Rollout, verified: Sequence[Rollout], config: TraceConfig, held_out: Collection[str]
) -> str | None:
    """Say why a rollout is no trace, None if it is one."""
    if rollout.problem.key in held_out:
        return HELD_OUT
    if not rollout.is_correct:
        return WRONG
    if config.needs_reasoning and not rollout.reasoning:
        return WITHOUT_REASONING
    if any(_text(rollout) == _text(other) for other in verified):
        return REPEATED
    return None


def _choose(verified: list[Rollout], config: TraceConfig, seed: int) -> list[Rollout]:
    """Take some answers of one problem, in the order they were sampled."""

    def rank(place: int) -> tuple[int, str]:
        rollout = verified[place]
        draw = repr((seed, rollout.problem.key, _text(rollout)))
        length = len(rollout.token_ids) if config.choice == "shortest" else 0
        return length, hashlib.sha256(draw.encode()).hexdigest()

    places = sorted(range(len(verified)), key=rank)[: config.per_problem]
    return [verified[place] for place in sorted(places)]


def _text(rollout: Rollout) -> tuple[str | None, str | None]:
    return rollout.reasoning, rollout.answer


def _entry(rollout: Rollout) -> dict[str, Any]:
    problem = rollout.problem
    reasoning = {"reasoning_content": rollout.reasoning} if rollout.reasoning else {}
    return {
        "messages": [
            {"role": "user", "content": problem.question},
            {"role": "assistant", **reasoning, "content": rollout.answer},
        ],
        "task": problem.task,
        "level": problem.level,
        "key": problem.key,
        "tokens": len(rollout.token_ids),
    }
