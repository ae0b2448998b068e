"""Which problems a step asks: a mix of tasks, drawn from the number of the step alone."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ziphius.rl.settings import TaskChoice
from ziphius.tasks import Problem, Split, get_task

IntArray = npt.NDArray[np.int64]


class ProblemStream(Protocol):
    """Says which problems a step asks."""

    def __call__(self, step: int, refill_round: int = 0, /) -> Sequence[Problem]:
        """Return the problems of a step, always the same ones.

        Args:
            step: which round of sampling of the run.
            refill_round: from 1 on, as many other problems: place p is asked where the problem at
                place p of the round before taught nothing.
        """
        ...


class ProblemMix:
    """Problems of several tasks and levels, in fixed shares; a `ProblemStream`.

    Args:
        choices: tasks, levels and their weights.
        per_step: problems of a step, all different.
        pool: different problems of each choice.
        seed: of the run.
        split: that the problems are taken from.
    """

    def __init__(
        self,
        choices: Sequence[TaskChoice],
        *,
        per_step: int,
        pool: int,
        seed: int,
        split: Split = "train",
    ) -> None:
        self.per_step, self.seed = per_step, seed
        self.pools = [
            get_task(choice.name).problems(split, choice.level, pool, seed) for choice in choices
        ]
        shares = np.array([choice.share for choice in choices])
        self.shares = shares / shares.sum()

    def __call__(self, step: int, refill_round: int = 0, /) -> list[Problem]:
        """Return the problems of a step; see `ProblemStream`.

        The rounds of a step have the same task at the same place, and no problem twice while the
        pool lasts.
        """
        generator = np.random.default_rng((self.seed, step))
        drawn: list[Problem] = []
        for number, (pool, count) in enumerate(
            zip(self.pools, self._counts(generator), strict=True), 1
        ):
            places = generator.choice(len(pool), count, replace=count > len(pool))
            if refill_round and count:
                places = self._refill(places, len(pool), (step, number), refill_round)
            drawn += [pool[place] for place in places]
        return drawn

    def _refill(
        self, asked: IntArray, size: int, where: tuple[int, int], refill_round: int
    ) -> IntArray:
        """Go on in a pool behind what a step asked first, and from there again at its end."""
        rest = np.setdiff1d(np.arange(size), asked)
        stream = np.concatenate(
            (asked, np.random.default_rng((self.seed, *where)).permutation(rest))
        )
        first = refill_round * len(asked)
        return stream[np.arange(first, first + len(asked)) % len(stream)]

    def all(self) -> list[Problem]:
        """Return every problem of the pools."""
        return [problem for pool in self.pools for problem in pool]

    def fingerprint(self) -> str:
        """Name the problems and their order."""
        digest = sha256("".join(problem.key for problem in self.all()).encode())
        shares = " ".join(f"{share:.6f}" for share in self.shares)
        return f"{digest.hexdigest()[:16]} x {shares}, {self.per_step} a step, seed {self.seed}"

    def _counts(self, generator: np.random.Generator) -> list[int]:
        """Share a step out; what is left after whole problems falls by lot."""
        exact = self.shares * self.per_step
        counts = np.floor(exact + 1e-9).astype(int)
        left = self.per_step - int(counts.sum())
        if left:
            rest = np.clip(exact - counts, 0, None)
            counts[generator.choice(len(rest), left, replace=False, p=rest / rest.sum())] += 1
        return [int(count) for count in counts]
