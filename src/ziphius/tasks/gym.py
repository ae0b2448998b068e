"""Families of the package reasoning-gym as tasks: its generator and scorer, our words and steps.

Departures from the package:

1. a question is our own short statement of the same problem, because models of 1 to 2 million
   parameters read it; its scorer still decides, on its own entry;
2. partial credit is no credit, and what does not have the form of an answer is wrong before the
   scorer sees it, so that none is asked about text it raises on or reads too kindly; a number
   spelled in another way than its own is first written plainly (`ziphius.tasks.numbers`);
3. families that cannot be trusted are refused (`ziphius.tasks.refused`).
"""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Protocol

from ziphius.core.errors import MissingExtraError
from ziphius.tasks.errors import TaskError
from ziphius.tasks.numbers import read_number, written
from ziphius.tasks.task import LONGEST_ANSWER, Problem, Split, Task, readable, split_of

Entry = Mapping[str, Any]

INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
DECIMAL = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?")

PATIENCE = 5_000
"""Draws in a row without a new problem, after which none is expected any more."""


class Family(Protocol):
    """What a data set of reasoning-gym can do."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """Return 1.0 for a correct answer."""
        ...


class GymTask(Task):
    """A family of reasoning-gym. A subclass says its levels, its question and its steps."""

    settings: ClassVar[Mapping[int, Mapping[str, Any]]]
    """The family's own config by level."""
    form: ClassVar[re.Pattern[str]] = INTEGER
    """What an answer looks like; it bounds the length, so that no scorer meets a huge number."""

    def __init__(self) -> None:
        self.levels = tuple(self.settings)

    @abstractmethod
    def ask(self, facts: Mapping[str, Any]) -> str:
        """State the problem in a few words, things whose order says nothing in a fixed one."""

    @abstractmethod
    def content(self, facts: Mapping[str, Any]) -> str:
        """Say what has to be known or computed, in one form for all twins and levels.

        What two families share should read alike in both: a word, a number, a list of numbers.
        """

    def answer(self, entry: Entry) -> str:
        """Return the correct answer as a model should write it."""
        return str(entry["answer"])

    def facts(self, entry: Entry) -> dict[str, Any]:
        """Return what the scorer and our own methods need to know of a problem."""
        return {**entry["metadata"], "answer": entry["answer"]}

    def scored(self, answer: str) -> str:
        """Return an answer as the family's scorer wants to read it."""
        return answer

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Say whether a drawn problem is one to ask."""
        return True

    def is_in(self, split: Split, problem: Problem) -> bool:
        """Say whether a problem belongs to a split."""
        return split_of(problem.content) == split

    def family(self, level: int, seed: int, split: Split) -> Family:
        """Make the generator to draw from, which may already be held to what the split has."""
        return self._family(level, seed)

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        """Draw from the family and keep what falls into the split."""
        family = self.family(level, seed, split)
        found: dict[str, Problem] = {}
        index = last = 0
        while len(found) < count:
            problem = self._problem(family[index], level)
            if problem and problem.question not in found and self.is_in(split, problem):
                found[problem.question] = problem
                last = index
            index += 1
            if index - last > PATIENCE:
                raise TaskError(
                    f"Task {self.name} has about {len(found)} different problems of level {level} "
                    f"in the split {split}, not {count}: ask for fewer, or for a higher level."
                )
        return list(found.values())

    def verify(self, problem: Problem, answer: str | None) -> bool:
        """Ask the family's own scorer; only its full score counts."""
        text = self._in_form(answer)
        if text is None:
            return False
        entry = {"answer": problem.facts["answer"], "metadata": dict(problem.facts)}
        try:
            return self._scorer.score_answer(self.scored(text), entry) == 1.0
        except (ValueError, ArithmeticError):  # what int, Decimal and Fraction raise on a text
            return False

    def _in_form(self, answer: str | None) -> str | None:
        """Return an answer in the task's form; a number may be spelled in another way."""
        text = readable(answer)
        if text is not None and self.form.fullmatch(text):
            return text
        if self.form not in (INTEGER, DECIMAL) or answer is None or len(answer) > LONGEST_ANSWER:
            return None
        number = read_number(answer)
        text = None if number is None or number.is_percent else written(number.value)
        return text if text is not None and self.form.fullmatch(text) else None

    def _problem(self, entry: Entry, level: int) -> Problem | None:
        facts = self.facts(entry)
        if not self.is_wanted(facts):
            return None
        return Problem(
            task=self.name,
            level=level,
            question=self.ask(facts),
            answer=self.answer(entry),
            content=self.content(facts),
            facts=facts,
        )

    def _family(self, level: int, seed: int) -> Family:
        """Make the family's generator for a level and a seed.

        Item i of reasoning-gym is drawn from seed + i, so neighbouring seeds would share most
        items: ours are spread by a hash.
        """
        settings = self.settings[self.checked_level(level)]
        content = f"{self.name} {level} {seed}".encode()
        spread = int.from_bytes(hashlib.blake2b(content, digest_size=6).digest())
        return _create(self.name, seed=spread, size=2**31, **settings)

    @cached_property
    def _scorer(self) -> Family:
        return self._family(self.levels[0], 0)


def _create(name: str, **settings: Any) -> Family:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingExtraError(
            f"The task {name} comes from the package reasoning-gym: pip install 'ziphius[tasks]'."
        ) from error
    family: Family = reasoning_gym.create_dataset(name, **settings)
    return family
