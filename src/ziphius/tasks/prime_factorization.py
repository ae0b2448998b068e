"""Prime factors, by division."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import Entry, GymTask
from ziphius.tasks.task import Problem


class PrimeFactorization(GymTask):
    """`factor 84`; the answer is `2*2*3*7`.

    Numbers whose primes are all below a hundred, and no primes: to say that 7919 is prime takes
    more divisions than a short solution has.
    """

    name = "prime_factorization"
    settings: ClassVar = {
        1: {"min_value": 4, "max_value": 3_000},
        2: {"min_value": 2_000, "max_value": 10_000},
        3: {"min_value": 10_000, "max_value": 50_000},
    }
    form = re.compile(r"[0-9]{1,20}( ?\* ?[0-9]{1,20}){0,40}")

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Take numbers of several primes, all of them small."""
        return len(facts["factors"]) > 1 and max(facts["factors"]) < 100

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the number."""
        return f"factor {facts['number']}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the number."""
        return str(facts["number"])

    def answer(self, entry: Entry) -> str:
        """Write the factors with a sign that keyboards have."""
        return "*".join(map(str, entry["metadata"]["factors"]))

    def scored(self, answer: str) -> str:
        """Write the family's own multiplication sign."""
        return answer.replace("*", "\u00d7")

    def solve(self, problem: Problem) -> str:
        """Divide by the smallest prime, again and again."""
        rest, lines = problem.facts["number"], []
        for prime in problem.facts["factors"][:-1]:
            lines.append(f"{rest}/{prime}={rest // prime}")
            rest //= prime
        return "\n".join([*lines, f"{problem.facts['number']}={problem.answer}"])
