"""Which problems a step asks: a mix of tasks, drawn from the number of the step alone."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from ziphius.rl.settings import TaskChoice
from ziphius.tasks import Problem, Split, get_task


class ProblemMix:
    """Problems of several tasks and levels, in fixed shares.

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
            get_task(choice.name).problems(split, choice.level, pool) for choice in choices
        ]
        shares = np.array([choice.share for choice in choices])
        self.shares = shares / shares.sum()

    def __call__(self, step: int) -> list[Problem]:
        """Return the problems of a step, always the same ones."""
        generator = np.random.default_rng((self.seed, step))
        drawn: list[Problem] = []
        for pool, count in zip(self.pools, self._counts(generator), strict=True):
            places = generator.choice(len(pool), count, replace=count > len(pool))
            drawn += [pool[place] for place in places]
        return drawn

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
