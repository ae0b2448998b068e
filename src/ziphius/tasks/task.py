"""A task: its problems, what counts as correct, and how to get there step by step.

Training, reinforcement learning and evaluation ask the same object, so they cannot disagree on what
is correct. Which split a problem belongs to is a hash of its content, of what has to be known or
computed: no wording, seed, level or count can move it from one split into another.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ziphius.tasks.errors import TaskError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
VALIDATION_SHARE = TEST_SHARE = 0.1

LONGEST_ANSWER = 1_000
"""Characters; a longer text is no final answer, and is wrong without being read."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with its answer, and what its task needs to verify and solve it."""

    task: str
    level: int
    question: str
    answer: str
    content: str
    """What has to be known or computed, in one canonical form: twins such as 3+4 and 4+3 have the
    same. The split hangs on it."""
    facts: Mapping[str, Any] = field(repr=False, hash=False)
    """Plain values such as the numbers of a sum; only the problem's own task reads them."""

    @property
    def key(self) -> str:
        """The name of the problem: the same question of the same task has the same key for ever."""
        return _digest(self.task, self.question).hex()


class Task(ABC):
    """A kind of problem. Tasks hold no state that calls change, so one object serves all."""

    name: str
    levels: tuple[int, ...]
    """Levels of difficulty; 1 is the easiest."""

    @abstractmethod
    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        """Return `count` different problems of a split, always the same ones for a seed.

        A larger count begins with the problems of a smaller one. Splits share no content,
        whatever the seeds and levels.

        Raises:
            TaskError: no such level, or fewer than `count` problems exist.
        """

    @abstractmethod
    def verify(self, problem: Problem, answer: str | None) -> bool:
        """Say whether an answer is correct: the only place that does.

        Takes any text and never raises; None (no answer was found) is wrong.
        """

    @abstractmethod
    def solve(self, problem: Problem) -> str:
        """Write the steps of a solution, one a line; the answer follows from the last."""

    def checked_level(self, level: int) -> int:
        """Return the level, if the task has it."""
        if level not in self.levels:
            known = ", ".join(map(str, self.levels))
            raise TaskError(f"Task {self.name} has no level {level}; it has {known}.")
        return level


def split_of(content: str) -> Split:
    """Say which split a content belongs to, by its text alone: the same in every task."""
    draw = int.from_bytes(_digest("split", content)[:7]) / 2**56
    if draw < TEST_SHARE:
        return "test"
    return "validation" if draw < TEST_SHARE + VALIDATION_SHARE else "train"


def readable(answer: str | None) -> str | None:
    """Return an answer without the blanks around it; None for what no answer looks like.

    That is: nothing, more than `LONGEST_ANSWER` characters, several lines, or characters beyond
    ASCII, such as the digits of other scripts, which `int` would read.
    """
    if answer is None or len(answer) > LONGEST_ANSWER:
        return None
    answer = answer.strip(" \t\r\n")
    return answer if answer and answer.isascii() and answer.isprintable() else None


def _digest(*names: str) -> bytes:
    content = "\0".join(names).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=8).digest()
