"""Whether reinforcement learning has anything to do: it can only make more likely what is sampled.

A model that is always right gains nothing, and one whose answers to a problem are all right or all
wrong gives no group in which rewards differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.models.model import Model
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.tasks import Problem
from ziphius.text.tokenizer import Tokenizer

SAMPLES = 16
HIGHEST_PASS_1 = 0.95
LEAST_GAP = 0.01
"""Between pass@1 and pass@16; below it they are as good as equal."""
FIRST_ID = 2**49
"""Sequences of this measurement begin here, far from those of any step."""


class NoHeadroomError(ConfigError):
    """Reinforcement learning would change nothing: the message says why, with the figures."""


@dataclass(frozen=True)
class Headroom:
    """How well a model answers with one try, and with the best of several."""

    pass_1: float
    pass_k: float
    samples: int
    problems: int

    def __str__(self) -> str:
        """Write the figures in a line."""
        return (
            f"pass@1 is {100 * self.pass_1:.1f} % and pass@{self.samples} is "
            f"{100 * self.pass_k:.1f} % on {self.problems} problems"
        )


def measure_headroom(groups: Sequence[Sequence[Rollout]]) -> Headroom:
    """Measure groups of equal size."""
    right = [[rollout.is_correct for rollout in group] for group in groups]
    size = len(right[0])
    pass_1 = sum(map(sum, right)) / (size * len(right))
    return Headroom(pass_1, sum(map(any, right)) / len(right), size, len(right))


def refuse_without_headroom(headroom: Headroom) -> None:
    """Raise a NoHeadroomError where reinforcement learning has nothing to work with."""
    if headroom.pass_1 > HIGHEST_PASS_1:
        raise NoHeadroomError(
            f"Nothing is left to learn here: {headroom}. Choose a harder level, or end the "
            "fine-tuning before it earlier."
        )
    if headroom.pass_k - headroom.pass_1 < LEAST_GAP:
        raise NoHeadroomError(
            f"Nothing can be made more likely: {headroom}, so almost all answers to a problem are "
            "right, or all are wrong. Choose an easier level, a higher temperature, or fine-tune "
            "on more varied demonstrations."
        )


def check_headroom(
    model: Model,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    config: RolloutConfig,
    *,
    seed: int,
) -> Headroom:
    """Answer every problem 16 times, and refuse a model that has none.

    Args:
        model: about to be trained.
        tokenizer: its own.
        problems: of those that it would be trained on.
        config: how answers are sampled; the group size is this function's.
        seed: of the run.

    Raises:
        NoHeadroomError: pass@1 is above 95 %, or pass@16 is no better than it.
    """
    sampled = config.model_copy(update={"num_generations": SAMPLES})
    engine = RolloutEngine(model, tokenizer)
    headroom = measure_headroom(
        sample_groups(engine, problems, sampled, seed=seed, first_sequence_id=FIRST_ID)
    )
    refuse_without_headroom(headroom)
    return headroom
