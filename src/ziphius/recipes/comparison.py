"""GRPO against the controls, in every way of asking, over one run or several seeds.

All figures come from kept measurements; `recipes/arms.py` makes them. An arm's best mode, and with
it the best control, is chosen on development problems, which stand in no figure.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ziphius.evals.intervals import Estimate
from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, Measurement
from ziphius.evals.summary import (
    Figure,
    figure_of,
    figure_over_seeds,
    paired_difference_over_seeds,
)
from ziphius.recipes.arms import CONTROLS, TEACHER, Asked
from ziphius.recipes.report.sections import BEST_WAY

MIXED = "mixed held-out set"
SLICES: dict[str, tuple[str, ...]] = {
    MIXED: (IN_DISTRIBUTION, HARDER),
    IN_DISTRIBUTION: (IN_DISTRIBUTION,),
    HARDER: (HARDER,),
}
"""Where arms are compared, by name: both levels together, and each alone."""
WAYS: dict[str, tuple[str, Figure]] = {
    "as trained": ("sampled", "pass@1"),
    "think first": ("thinking", "pass@1"),
    "cooler": ("cool", "pass@1"),
    "greedy": ("greedy", "greedy"),
    "maj@8": ("thinking", "maj@8"),
    "pass@8": ("thinking", "pass@8"),
}
"""How an arm can be asked and scored, by name: the mode it is measured in, and the figure."""
ONE_ANSWER = ("as trained", "think first", "cooler", "greedy")
"""Ways that cost one answer a problem: an arm's best mode is one of them. A majority costs eight,
and pass@8 a verifier."""
BEST = BEST_WAY
Seeds = Sequence[Mapping[str, Asked]]
"""The arms of every seed, by name."""


@dataclass(frozen=True)
class Compared:
    """A figure of one arm less that of another, on the same problems."""

    slice: str
    ours: str
    theirs: str
    way: str
    """A key of `WAYS`, or `BEST`."""
    ways: tuple[str, str]
    """How each was asked."""
    estimate: Estimate
    """Over all seeds together."""
    by_seed: tuple[float, ...]
    """The difference of every seed."""


def best_way(seeds: Seeds, arm: str) -> str:
    """Name the way of one answer in which an arm is best on development problems."""
    return max(ONE_ANSWER, key=lambda way: _development(seeds, arm, way))


def best_control(seeds: Seeds) -> str:
    """Name the control that is best on development problems, each in its own best mode."""
    there = [name for name in CONTROLS if all(name in asked for asked in seeds)]
    return max(there, key=lambda arm: _development(seeds, arm, best_way(seeds, arm)))


def compare(seeds: Seeds, ours: str, theirs: str, slice_name: str, way: str = BEST) -> Compared:
    """Compare two arms.

    Args:
        seeds: the arms of every seed.
        ours: name of an arm.
        theirs: of another.
        slice_name: a key of `SLICES`.
        way: how both are asked; `BEST` asks each in its own best mode.
    """
    ways = (best_way(seeds, ours), best_way(seeds, theirs)) if way == BEST else (way, way)
    left, right = _chosen(seeds, ours, ways[0]), _chosen(seeds, theirs, ways[1])
    figure: Figure = "pass@1" if way == BEST else WAYS[way][1]
    slices = SLICES[slice_name]
    estimate = paired_difference_over_seeds(left, right, figure, slices=slices)
    by_seed = tuple(
        paired_difference_over_seeds([one], [other], figure, slices=slices).value
        for one, other in zip(left, right, strict=True)
    )
    return Compared(slice_name, ours, theirs, way, ways, estimate, by_seed)


def against_controls(seeds: Seeds) -> list[Compared]:
    """Compare GRPO with every control, on every slice, in every way and in the best of each."""
    return [
        compare(seeds, TEACHER, control, slice_name, way)
        for control in CONTROLS
        if all({TEACHER, control} <= asked.keys() for asked in seeds)
        for slice_name in SLICES
        for way in (BEST, *WAYS)
    ]


def figures(seeds: Seeds, arm: str, way: str, slice_name: str) -> Estimate:
    """Return a figure of an arm, asked in a way, over all seeds."""
    mode, figure = WAYS[way]
    measured = [asked[arm].test[mode] for asked in seeds]
    if len(measured) == 1:
        return figure_of(measured[0], figure, slices=SLICES[slice_name])
    return figure_over_seeds(measured, figure, slices=SLICES[slice_name])


def _development(seeds: Seeds, arm: str, way: str) -> float:
    mode, figure = WAYS[way]
    return statistics.fmean(
        figure_of(asked[arm].development[mode], figure, slices=SLICES[MIXED]).value
        for asked in seeds
    )


def _chosen(seeds: Seeds, arm: str, way: str) -> list[Measurement]:
    return [asked[arm].test[WAYS[way][0]] for asked in seeds]
