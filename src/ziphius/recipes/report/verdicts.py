"""What the figures say, in words: sentences that are made from the numbers, never beside them.

The first sentences are the claim (`claims.py`); students follow, and what did not work is counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ziphius.recipes.report.checks import (
    cut_off,
    learning_problems,
    unbalanced_experts,
    unbeaten_baselines,
    unsolved_slices,
)
from ziphius.recipes.report.claims import asked, claim, claims, gained, unshown
from ziphius.recipes.report.sections import Difference, Report, Taught
from ziphius.recipes.report.taught import taught_class, taught_sentences, untaught
from ziphius.recipes.report.text import duration, gap, share, standing


@dataclass(frozen=True)
class Headline:
    """One large number at the top of the page."""

    value: str
    label: str
    detail: str
    class_: str = ""


def headlines(report: Report) -> list[Headline]:
    """Choose the numbers that the run was made for; the first is what the report is about."""
    main = claim(report)
    found = [] if main is None else [_difference_headline(main)]
    found += [_difference_headline(one) for one in _other_goals(report)]
    found += [one for taught in report.taught for one in _taught_headline(taught)]
    if report.costs:
        total = sum(cost.seconds for cost in report.costs)
        found.append(
            Headline(duration(total), "for all stages", f"{len(report.costs)} stages, listed below")
        )
    return found


def findings(report: Report) -> list[str]:
    """Say what the run showed: the claim in three sentences, then all else."""
    return [*claims(report), *further_findings(report)]


def further_findings(report: Report) -> list[str]:
    """Say what the run showed besides its claim."""
    said = [gained(one) for one in _other_goals(report)]
    said += taught_sentences(report)
    problems = len(failures(report))
    if problems:
        things = "One thing" if problems == 1 else f"{problems} things"
        said.append(f"{things} did not work or could not be shown; see below.")
    return said


def failures(report: Report) -> list[str]:
    """Say what did not work or was not shown: what the figures tell, and what a recipe adds."""
    checks = (
        unshown(report),
        untaught(report),
        unsolved_slices(report),
        cut_off(report),
        unbeaten_baselines(report.losses),
        learning_problems(report.learning),
        unbalanced_experts(report),
    )
    return [sentence for check in checks for sentence in check] + list(report.failures)


def _other_goals(report: Report) -> list[Difference]:
    main = claim(report)
    return [one for one in report.differences if one.is_goal and one is not main]


def _difference_headline(one: Difference) -> Headline:
    value, interval = gap(one.estimate)
    control = ", the best control" if one.is_best_control else ""
    return Headline(
        value,
        f"points: {one.ours} less {one.theirs}{control}, {one.slice}",
        f"95 % interval {interval}{asked(one)}",
        standing(one.estimate),
    )


def _taught_headline(taught: Taught) -> Iterator[Headline]:
    if taught.kept is not None:
        value, interval = share(taught.kept)
        label = f"of {taught.teacher}'s pass@1 kept by {taught.student}"
        detail = f"95 % interval {interval} %"
        yield Headline(f"{value} %", label, detail, taught_class(taught))
    elif taught.lost is not None:
        value, interval = gap(taught.lost)
        label = f"points: {taught.student} less {taught.teacher}"
        yield Headline(value, label, f"95 % interval {interval}", taught_class(taught))
