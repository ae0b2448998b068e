"""How many legs some animals have."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.canonical import canonical
from ziphius.tasks.gym import GymTask
from ziphius.tasks.steps import add_up
from ziphius.tasks.task import Problem

_ANIMALS = {
    0: "snake, sea slug, jellyfish, flatworm, leech",
    2: "chicken, bird, human, duck",
    4: "dog, cat, cow, horse, lion, elephant, giraffe, tiger, deer, sheep",
    5: "starfish",
    6: "insect, ant, butterfly, beetle, bee, wasp, grasshopper, cricket, cockroach, "
    "praying mantis, firefly",
    8: "spider, scorpion",
    10: "crab, lobster, shrimp",
    14: "woodlouse",
}
_LEGS = {animal: legs for legs, names in _ANIMALS.items() for animal in names.split(", ")}


class LegCounting(GymTask):
    """`legs: 8 tiger, 7 spider`, in the order of the alphabet."""

    name = "leg_counting"
    settings: ClassVar = {
        1: {"min_animals": 1, "max_animals": 2, "max_instances": 9},
        2: {"min_animals": 3, "max_animals": 3, "max_instances": 9},
        3: {"min_animals": 4, "max_animals": 5, "max_instances": 9},
        4: {"min_animals": 4, "max_animals": 5, "max_instances": 15},
    }

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the animals."""
        listed = (f"{count} {animal}" for animal, count in sorted(facts["animals"].items()))
        return f"legs: {', '.join(listed)}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return what is multiplied and added up, whatever animals have so many legs."""
        terms = (f"{count}*{_LEGS[animal]}" for animal, count in facts["animals"].items())
        return canonical("+".join(terms))

    def solve(self, problem: Problem) -> str:
        """Count the legs of each kind, then add them up."""
        lines, counts = [], []
        for animal, count in sorted(problem.facts["animals"].items()):
            legs = _LEGS[animal]
            counts.append(str(legs * count))
            lines.append(f"{animal} {count}*{legs}={counts[-1]}")
        head, *tail = counts
        return "\n".join([*lines, *add_up(head, [f"+{number}" for number in tail])[0]])
