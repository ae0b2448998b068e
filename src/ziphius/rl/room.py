"""Whether reinforcement learning has anything to do: it can only make more likely what is sampled.

A model that is always right gains nothing, and one whose answers to a problem are all right or all
wrong gives no group in which rewards differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.models.model import Model
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.tasks import Problem
from ziphius.text.tokenizer import Tokenizer

SAMPLES = 16
HIGHEST_PASS_1 = 0.95
LEAST_GAP = 0.01
"""Between pass@1 and pass@16; below it they are as good as equal."""
FIRST_ID = 2**49
"""Sequences of this measurement begin here, far from those of any step."""


class NoRoomError(ConfigError):
    """Reinforcement learning would change nothing: the message says why, with the figures."""


@dataclass(frozen=True)
class Room:
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


def measure_room(groups: Sequence[Sequence[Rollout]]) -> Room:
    """Measure groups of equal size."""
    right = [[rollout.is_correct for rollout in group] for group in groups]
    size = len(right[0])
    pass_1 = sum(map(sum, right)) / (size * len(right))
    return Room(pass_1, sum(map(any, right)) / len(right), size, len(right))


def refuse_without_room(room: Room) -> None:
    """Raise a NoRoomError where reinforcement learning has nothing to work with."""
    if room.pass_1 > HIGHEST_PASS_1:
        raise NoRoomError(
            f"Nothing is left to learn here: {room}. Choose a harder level, or end the fine-tuning "
            "before it earlier."
        )
    if room.pass_k - room.pass_1 < LEAST_GAP:
        raise NoRoomError(
            f"Nothing can be made more likely: {room}, so almost all answers to a problem are "
            "right, or all are wrong. Choose an easier level, a higher temperature, or fine-tune "
            "on more varied demonstrations."
        )


def room_to_grow(
    model: Model,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    config: RolloutConfig,
    *,
    seed: int,
) -> Room:
    """Answer every problem 16 times, and refuse a model that has no room to grow.

    Args:
        model: about to be trained.
        tokenizer: its own.
        problems: of those that it would be trained on.
        config: how answers are sampled; the group size is this function's.
        seed: of the run.

    Raises:
        NoRoomError: pass@1 is above 95 %, or pass@16 is no better than it.
    """
    sampled = config.model_copy(update={"group_size": SAMPLES})
    room = measure_room(
        sample_groups(model, tokenizer, problems, sampled, seed=seed, first_sequence_id=FIRST_ID)
    )
    refuse_without_room(room)
    return room
