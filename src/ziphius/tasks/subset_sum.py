"""Some of a few numbers that add up to a target, found by taking them away."""

import re
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

from ziphius.tasks.search import SearchTask, take_away

LARGEST = 15
MOST_TRIES = 4
"""Of a demonstration."""
_FORM = re.compile(r"[1-9][0-9]?(\+[1-9][0-9]?){0,6}")
_SIZES = {1: (6, 3, 3), 2: (8, 3, 3)}
"""How many numbers, and the fewest and most that add up to the target, by level."""


class SubsetSum(SearchTask):
    """`add to 16: 3 5 8 2 9`; an answer is `3+5+8`, with no number twice."""

    name = "subset_sum"
    levels = tuple(_SIZES)

    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        """Draw numbers, all different, and a target that a few of them add up to."""
        count, fewest, most = _SIZES[level]
        numbers = random.sample(range(1, LARGEST + 1), count)
        target = sum(random.sample(numbers, random.randint(fewest, most)))
        return {"numbers": numbers, "target": target, "most": most}

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show target and numbers."""
        return f"add to {facts['target']}: {' '.join(map(str, facts['numbers']))}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Name the numbers in any order, and the target."""
        return f"{facts['target']} of {sorted(facts['numbers'])}"

    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        """Take numbers away from the target in random order; begin again when one is too large."""
        tries = []
        for _ in range(MOST_TRIES):
            order = random.sample(facts["numbers"], facts["most"])
            text, taken = take_away(facts["target"], order)
            tries.append(text)
            if taken is not None:
                return "\n".join(tries), "+".join(map(str, taken))
        return None

    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        """Add the numbers up, each of which is there and used once."""
        if not _FORM.fullmatch(answer):
            return False
        chosen = [int(number) for number in answer.split("+")]
        is_there = not Counter(chosen) - Counter(facts["numbers"])
        return is_there and sum(chosen) == facts["target"]
