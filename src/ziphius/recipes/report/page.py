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
from ziphius.recipes.report.curves import Curve, Panel, curve_figure
from ziphius.recipes.report.figure import Figure
from ziphius.recipes.report.heat import heat_figures, heat_keys
from ziphius.recipes.report.sections import (
    ExpertLoad,
    Learning,
    LossCurve,
    Report,
    Series,
)
from ziphius.recipes.report.students import taught_table
from ziphius.recipes.report.verdicts import failures, findings, headlines
from ziphius.recipes.report.whiskers import difference_figure, pass_figure
from ziphius.train.records import max_vio

SECTIONS: dict[str, str] = {
    "arms": "The arms",
    "differences": "What it gained",
    "failures": "What did not work",
    "transcripts": "In their own words",
    "taught": "Student and teacher",
    "learning": "Reinforcement learning",
    "losses": "Losses and their floors",
    "experts": "The experts",
    "costs": "What it cost",
    "machine": "Machine and versions",
}
"""Titles of the sections by the names of their fields, in the order of the page."""
FEWEST_STEPS = 2
"""Of a curve; a single point is no curve."""


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
    context: dict[str, Any] = {
        "report": report,
        "sections": present,
        "missing": missing,
        "headlines": headlines(report),
        "findings": findings(report),
        "failures": failures(report),
        "pass_figures": [
            pass_figure(f"pass-{place}", place, report.arms) for place in range(len(slices))
        ],
        "difference_figures": _difference_figures(report),
        "loss_figures": [
            _loss_figure(place, curve) for place, curve in enumerate(_curves_of(report))
        ],
        "learning_figures": _learning_figures(report.learning) if report.learning else [],
        "heat_figures": heat_figures(report.experts) if report.experts else [],
        "heat_keys": heat_keys(),
        "balance_figures": _balance_figures(report.experts) if report.experts else [],
        "taught": [taught_table(one, report.arms) for one in report.taught],
        "total": _total(report),
    }
    return _environment().get_template("page.html").render(context)


def _is_there(report: Report, name: str) -> bool:
    if name == "failures":
        return bool(report.arms or report.losses or report.failures)
    if name == "learning":
        return report.learning is not None and bool(_learning_figures(report.learning))
    if name == "experts":
        return report.experts is not None and bool(heat_figures(report.experts))
    if name == "losses":
        return bool(_curves_of(report))
    return bool(getattr(report, name))


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


def _difference_figures(report: Report) -> list[Figure]:
    """Draw one panel for each pair of arms."""
    pairs = dict.fromkeys((one.ours, one.theirs) for one in report.differences)
    return [
        difference_figure(
            f"difference-{place}",
            [one for one in report.differences if (one.ours, one.theirs) == pair],
        )
        for place, pair in enumerate(pairs)
    ]


def _curves_of(report: Report) -> list[LossCurve]:
    return [curve for curve in report.losses if len(curve.steps) >= FEWEST_STEPS]


def _loss_figure(place: int, curve: LossCurve) -> Figure:
    curves = [Curve("training", curve.steps, curve.losses)]
    if curve.validation_losses:
        curves.append(
            Curve("held-out text", curve.validation_steps, curve.validation_losses, "s1", True)
        )
    caption = (
        "nats a token; dashed: what guessing by counts reaches" if curve.floors else "nats a token"
    )
    return curve_figure(
        Panel(f"loss-{place}", curve.stage, caption, tuple(curves), levels=curve.floors)
    )


def _learning_figures(learning: Learning) -> list[Figure]:
    if len(learning.steps) < FEWEST_STEPS:
        return []
    panels: tuple[tuple[str, str, str, Series, dict[str, Any]], ...] = (
        ("reward", "Reward", "mean of a step's completions", learning.reward, {}),
        ("tokens", "Length", "tokens of a completion, mean", learning.tokens, {}),
        (
            "dead",
            "Dead groups",
            "share of groups all right or all wrong: they teach nothing",
            learning.dead_groups,
            {"from_zero": True, "is_percent": True},
        ),
        (
            "kl",
            "KL to the reference",
            "k3 estimate, nats a token",
            learning.kl,
            {"from_zero": True},
        ),
        (
            "logprobs",
            "Rollout against trainer",
            "largest difference of a log-probability in a step",
            [max(value, LOWEST_SHOWN) for value in learning.logprob_difference],
            {"is_log": True, "levels": {"bound": learning.logprob_bound}},
        ),
    )
    return [
        curve_figure(
            Panel(
                f"learning-{name}",
                title,
                caption,
                (Curve(title.lower(), learning.steps, values),),
                **options,
            )
        )
        for name, title, caption, values, options in panels
        if values
    ]


LOWEST_SHOWN = 1e-9
"""On the logarithmic scale of differences, where 0 has no place."""


def _balance_figures(load: ExpertLoad) -> list[Figure]:
    """Draw how uneven the load of every layer was, if there are steps enough for curves."""
    if len(load.steps) < FEWEST_STEPS:
        return []
    curves = tuple(
        Curve(f"layer {layer}", load.steps, [max_vio(row) for row in counts], f"s{place % 5}")
        for place, (layer, counts) in enumerate(load.counts_by_layer.items())
        if len(counts)
    )
    caption = "how far the busiest expert is above an even share; 0 is balanced"
    return [curve_figure(Panel("max-vio", "MaxVio", caption, curves, from_zero=True))]


def _total(report: Report) -> dict[str, float]:
    return {
        "seconds": sum(cost.seconds for cost in report.costs) or 1.0,
        "flops": sum(cost.flops or 0.0 for cost in report.costs),
    }
