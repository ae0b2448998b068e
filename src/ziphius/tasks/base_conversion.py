"""Numbers from one base into another, by way of ten."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.task import Problem

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class BaseConversion(GymTask):
    """`115 base 11 to 15`."""

    name = "base_conversion"
    settings: ClassVar = {
        1: {"min_base": 2, "max_base": 6, "min_value": 6, "max_value": 80},
        2: {"min_base": 2, "max_base": 10, "min_value": 20, "max_value": 300},
        3: {"min_base": 2, "max_base": 16, "min_value": 50, "max_value": 1_000},
    }
    form = re.compile(r"[0-9a-z]{1,40}")

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the number and both bases."""
        return f"{facts['source_repr']} base {facts['source_base']} to {facts['target_base']}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the number in base ten."""
        return str(int(facts["source_repr"], facts["source_base"]))

    def solve(self, problem: Problem) -> str:
        """Read digit by digit (Horner), then divide with remainder; digits come last first."""
        source, target = problem.facts["source_base"], problem.facts["target_base"]
        first, *rest = map(_DIGITS.index, problem.facts["source_repr"])
        value, lines, start = first, [], str(first)
        for digit in rest:
            value = value * source + digit
            lines.append(f"{start}*{source}+{digit}={value}")
            start = ""
        digits = ""
        while value:
            lines.append(f"{value}={value // target}*{target}+{value % target}")
            value, digits = value // target, _DIGITS[value % target] + digits
        return "\n".join([*lines, f"base {target}={digits}"])
