"""Counting a letter in a text, letter by letter."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem


class LetterCounting(GymTask):
    """`count r: b-e-r-r-y t-r-e-e`, words spelled out, because tokens hide their letters."""

    name = "letter_counting"
    settings: ClassVar = {
        1: {"min_words": 1, "max_words": 1},
        2: {"min_words": 2, "max_words": 2},
        3: {"min_words": 3, "max_words": 4},
        4: {"min_words": 5, "max_words": 7},
    }

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out years, whose digits would mingle with the counts."""
        return all(word.isalpha() and word.isascii() for word in _words(facts))

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the letter and the spelled words."""
        return f"count {facts['target_letter']}: {' '.join(map('-'.join, _words(facts)))}"

    def solve(self, problem: Problem) -> str:
        """Go through each word and say the count behind every letter that counts."""
        letter, count, lines = problem.facts["target_letter"], 0, []
        for word in _words(problem.facts):
            line = ""
            for character in word:
                count += character == letter
                line += f"-{character}" + str(count) * (character == letter)
            lines.append(line.removeprefix("-"))
        return "\n".join([*lines, f"{letter}={count}"])


def _words(facts: Mapping[str, Any]) -> list[str]:
    return [str(word).lower() for word in facts["span"]]
