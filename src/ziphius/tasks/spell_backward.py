"""Words from the last letter to the first."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import Entry, GymTask
from ziphius.tasks.task import Problem


class SpellBackward(GymTask):
    """`reverse s-u-n`; the answer is `nus`. Spelled out, because tokens hide their letters."""

    name = "spell_backward"
    settings: ClassVar = {
        1: {"min_word_len": 3, "max_word_len": 5},
        2: {"min_word_len": 6, "max_word_len": 7},
        3: {"min_word_len": 8, "max_word_len": 10},
    }
    form = re.compile(r"[A-Za-z0-9]{1,40}")

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the letters."""
        return f"reverse {'-'.join(facts['word'].lower())}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the word in lower case."""
        return str(facts["word"]).lower()

    def answer(self, entry: Entry) -> str:
        """Write the word backwards in lower case, which the scorer does not mind."""
        return str(entry["answer"]).lower()

    def solve(self, problem: Problem) -> str:
        """Spell backwards, then write the word."""
        return f"{'-'.join(problem.answer)}={problem.answer}"
