"""Counting a letter in a text, letter by letter."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

from ziphius.tasks.gym import Family, GymTask
from ziphius.tasks.task import Problem, Split, split_of


class _Text(Family, Protocol):
    words: list[str]
    """The family's text, from which it cuts its spans."""


class LetterCounting(GymTask):
    """`count r: b-e-r-r-y t-r-e-e`, words spelled out, because tokens hide their letters.

    Each word belongs to one split, whatever the letter. A span is drawn from the family's text
    without the words of other splits: of the text as it stands, hardly one would fall into a small
    split as a whole.
    """

    name = "letter_counting"
    settings: ClassVar = {
        1: {"min_words": 1, "max_words": 1},
        2: {"min_words": 2, "max_words": 2},
        3: {"min_words": 3, "max_words": 4},
        4: {"min_words": 5, "max_words": 7},
    }

    def family(self, level: int, seed: int, split: Split) -> Family:
        """Hold the family's text to the words of the split."""
        family = cast(_Text, super().family(level, seed, split))
        family.words = [word for word in family.words if split_of(word.lower()) == split]
        return family

    def is_in(self, split: Split, problem: Problem) -> bool:
        """Ask for each word by itself."""
        return all(split_of(word) == split for word in problem.content.split())

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out years, whose digits would mingle with the counts."""
        return all(word.isalpha() and word.isascii() for word in _words(facts))

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the letter and the spelled words."""
        return f"count {facts['target_letter']}: {' '.join(map('-'.join, _words(facts)))}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the words, each once; the letter is no content."""
        return " ".join(sorted(set(_words(facts))))

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
