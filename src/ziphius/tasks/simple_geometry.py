"""The missing angle of a polygon."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ziphius.tasks.gym import GymTask
from ziphius.tasks.steps import add_up
from ziphius.tasks.task import Problem


class SimpleGeometry(GymTask):
    """`angles 75,155,26,?`, the larger ones first."""

    name = "simple_geometry"
    settings: ClassVar = {
        1: {"min_sides": 3, "max_sides": 3},
        2: {"min_sides": 4, "max_sides": 4},
        3: {"min_sides": 5, "max_sides": 6},
    }

    def is_wanted(self, facts: Mapping[str, Any]) -> bool:
        """Leave out polygons that are called convex and are not."""
        return 0 < int(facts["missing_angle_rounded"]) < 180

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show the angles, in degrees."""
        return f"angles {','.join(map(str, _falling(facts)))},?"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Return the angles, the smallest one first."""
        return ",".join(map(str, reversed(_falling(facts))))

    def solve(self, problem: Problem) -> str:
        """Subtract from (n - 2) * 180 one angle after the other."""
        times = problem.facts["n_sides"] - 2
        angles = [f"-{angle}" for angle in _falling(problem.facts)]
        lines = [f"{times}*180={times * 180}", *add_up(str(times * 180), angles)[0]]
        return "\n".join(lines)


def _falling(facts: Mapping[str, Any]) -> list[int]:
    return sorted(map(int, facts["known_angles"]), reverse=True)
