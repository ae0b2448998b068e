"""The page: figures and words of a `Report` put into one HTML file that asks nothing of a network.

The template escapes everything that is not a picture of ours, and the page's own content policy
forbids scripts and requests, should anything ever get through.
"""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ziphius.core.files import write_file
from ziphius.recipes.report import text
from ziphius.recipes.report.claims import claims
from ziphius.recipes.report.figure import Figure
from ziphius.recipes.report.heat import heat_figures, heat_keys
from ziphius.recipes.report.progress import balance_figures, learning_figures, loss_figures
from ziphius.recipes.report.sections import Difference, Report
from ziphius.recipes.report.students import size_table, spending_table, taught_table
from ziphius.recipes.report.tables import asked_table, difference_tables, in_order
from ziphius.recipes.report.taught import student_differences
from ziphius.recipes.report.verdicts import failures, further_findings, headlines
from ziphius.recipes.report.whiskers import COLOURS, difference_figure, pass_figure

SECTIONS: dict[str, str] = {
    "arms": "The arms",
    "asked": "Asked in every way",
    "differences": "Against every control",
    "failures": "What did not work",
    "transcripts": "In their own words",
    "taught": "The students",
    "learning": "Reinforcement learning",
    "losses": "Losses and their baselines",
    "experts": "The experts",
    "costs": "What it cost",
    "machine": "Machine and versions",
}
"""Titles of the sections by the names of their fields, in the order of the page."""


def write_report(report: Report, path: Path) -> None:
    """Write the page of a report; the file appears whole or not at all."""
    write_file(path, render(report))


def render(report: Report) -> str:
    """Return the page of a report."""
    present = {name: title for name, title in SECTIONS.items() if _is_there(report, name)}
    missing = {
        title: report.reasons.get(name, "nothing was recorded")
        for name, title in SECTIONS.items()
        if name not in present
    }
    slices = report.arms[0].slices if report.arms else ()
    against, students = _differences(report)
    context: dict[str, Any] = {
        "report": report,
        "sections": present,
        "missing": missing,
        "headlines": headlines(report),
        "claims": claims(report),
        "findings": further_findings(report),
        "failures": failures(report),
        "place_of_arm": {arm.name: place for place, arm in enumerate(report.arms)},
        "has_corrections": any(one.corrections.value for arm in report.arms for one in arm.slices),
        "pass_figures": [
            pass_figure(f"pass-{place}", place, report.arms) for place in range(len(slices))
        ],
        "asked": asked_table(report.asked),
        "difference_tables": difference_tables(against),
        "difference_figures": _difference_figures("difference", against),
        "has_seeds": any(one.estimate.seeds > 1 for one in report.differences),
        "loss_figures": loss_figures(report),
        "learning_figures": learning_figures(report.learning),
        "heat_figures": heat_figures(report.experts) if report.experts else [],
        "heat_keys": heat_keys(),
        "balance_figures": balance_figures(report.experts),
        "student_tables": [size_table(report), spending_table(report)],
        "student_differences": difference_tables(students),
        "student_figures": _difference_figures("student-difference", students),
        "taught": [taught_table(one, report.arms) for one in report.taught],
        "total": _total(report),
    }
    return _environment().get_template("page.html").render(context)


def _is_there(report: Report, name: str) -> bool:
    if name == "failures":
        return bool(report.arms or report.losses or report.failures)
    if name == "asked":
        return bool(report.asked or report.baselines)
    if name == "differences":
        return bool(_differences(report)[0])
    if name == "learning":
        return bool(learning_figures(report.learning))
    if name == "experts":
        return report.experts is not None and bool(heat_figures(report.experts))
    if name == "losses":
        return bool(loss_figures(report))
    return bool(getattr(report, name))


def _differences(report: Report) -> tuple[list[Difference], list[Difference]]:
    """Return the differences by section: to the controls, and of students to theirs."""
    students = student_differences(report)
    return [one for one in report.differences if one not in students], students


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # As filters, and for macros that are told which one to use.
    environment.globals["words"] = text
    environment.globals["colours"] = COLOURS
    for function in (
        text.clipped,
        text.duration,
        text.percent,
        text.plain,
        text.share,
        text.short,
        text.spaced,
    ):
        environment.filters[function.__name__] = function
    return environment


def _finalized(value: Any) -> Any:
    """Make every text that the template prints safe to show; markup of ours is."""
    return text.shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _difference_figures(name: str, differences: list[Difference]) -> list[Figure]:
    """Draw one panel for each pair of arms, those of one arm on one scale."""
    ordered = in_order(differences)
    pairs = dict.fromkeys((one.ours, one.theirs) for one in ordered)
    return [
        difference_figure(
            f"{name}-{place}",
            [one for one in ordered if (one.ours, one.theirs) == pair],
            among=[one for one in ordered if one.ours == pair[0]],
        )
        for place, pair in enumerate(pairs)
    ]


def _total(report: Report) -> dict[str, float]:
    return {
        "seconds": sum(cost.seconds for cost in report.costs) or 1.0,
        "flops": sum(cost.flops or 0.0 for cost in report.costs),
    }
