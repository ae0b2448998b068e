"""Problems that are searched for: drawn here, demonstrated by a search that is honest but clumsy.

A demonstration is the trace of a depth-first search whose branches come in random order, dead ends
and all, kept only if it arrives within a limit (the idea of Stream of Search, arXiv 2404.03683).
Every step of it is right; which step to take first is what it cannot show, because the demonstrator
does not know. Drawing hangs on the seed; how a problem is searched on the problem alone.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from ziphius.tasks.errors import TaskError
from ziphius.tasks.task import Problem, Split, Task, readable, split_of

PATIENCE = 200_000
"""Draws in a row without a new problem, after which none is expected any more."""
ATTEMPTS = 10_000
"""Searches of one problem, after which none is expected to arrive within the limit."""


class SearchTask(Task):
    """A family whose problems are drawn here and have many answers, of which any one is correct."""

    @abstractmethod
    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        """Draw the facts of a problem that can be solved; None for a draw to throw away."""

    @abstractmethod
    def ask(self, facts: Mapping[str, Any]) -> str:
        """State the problem in a few words."""

    @abstractmethod
    def content(self, facts: Mapping[str, Any]) -> str:
        """Name what has to be found, alike for twins that only order or mirror it."""

    @abstractmethod
    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        """Search once in random order: the trace and the answer, None beyond the limit."""

    @abstractmethod
    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        """Check a readable answer."""

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        """Draw problems, and keep what falls into the split and was not drawn before."""
        random = Random(f"{self.name} {self.checked_level(level)} {seed}")
        found: dict[str, Problem] = {}
        misses = 0
        while len(found) < count:
            facts = self.draw(random, level)
            content = facts and self.content(facts)
            if facts and content and content not in found and split_of(content) == split:
                found[content] = self._problem(level, content, facts)
                misses = 0
            misses += 1
            if misses > PATIENCE:
                raise TaskError(
                    f"Task {self.name} has about {len(found)} different problems of level {level} "
                    f"in the split {split}, not {count}: ask for fewer, or for a higher level."
                )
        return list(found.values())

    def verify(self, problem: Problem, answer: str | None) -> bool:
        """Check any answer, not only the one that the demonstrator found."""
        text = readable(answer)
        return text is not None and self.is_correct(problem.facts, text)

    def solve(self, problem: Problem) -> str:
        """Write the trace of the search that found `problem.answer`."""
        return self._found(problem.facts, problem.content)[0]

    def _problem(self, level: int, content: str, facts: Mapping[str, Any]) -> Problem:
        return Problem(
            task=self.name,
            level=level,
            question=self.ask(facts),
            answer=self._found(facts, content)[1],
            content=content,
            facts=facts,
        )

    def _found(self, facts: Mapping[str, Any], content: str) -> tuple[str, str]:
        digest = hashlib.blake2b(f"{self.name} {content}".encode(), digest_size=8).digest()
        random = Random(int.from_bytes(digest))
        for _ in range(ATTEMPTS):
            if found := self.search(facts, random):
                return found
        raise TaskError(f"Task {self.name}: no search of {self.ask(facts)!r} arrives.")


def take_away(target: int, numbers: Iterable[int]) -> tuple[str, list[int] | None]:
    """Take numbers away in the order given until nothing is left or one is too large.

    Returns:
        `-5=11-8=3-3=0`, or `-9=7-8` where 8 is too large; and the numbers if nothing is left.
    """
    text, taken, rest = "", list[int](), target
    for number in numbers:
        text += f"-{number}"
        if number > rest:
            break
        rest -= number
        text += f"={rest}"
        taken.append(number)
        if rest == 0:
            return text, taken
    return text, None
