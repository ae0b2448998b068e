"""Panels of what happened step by step: losses, reinforcement learning, balance of experts."""

from typing import Any

from ziphius.recipes.report.curves import Curve, Panel, curve_figure
from ziphius.recipes.report.figure import Figure
from ziphius.recipes.report.sections import ExpertLoad, Learning, LossCurve, Report, Series
from ziphius.train.records import max_vio

FEWEST_STEPS = 2
"""Of a curve; a single point is no curve."""
LOWEST_SHOWN = 1e-9
"""On the logarithmic scale of differences, where 0 has no place."""


def loss_figures(report: Report) -> list[Figure]:
    """Draw the loss of every stage that has enough steps."""
    curves = [curve for curve in report.losses if len(curve.steps) >= FEWEST_STEPS]
    return [_loss_figure(place, curve) for place, curve in enumerate(curves)]


def _loss_figure(place: int, curve: LossCurve) -> Figure:
    curves = [Curve("training", curve.steps, curve.losses)]
    if curve.validation_losses:
        curves.append(
            Curve("held-out text", curve.validation_steps, curve.validation_losses, "s1", True)
        )
    caption = (
        "nats a token; dashed: what guessing by counts reaches"
        if curve.baselines
        else "nats a token"
    )
    return curve_figure(
        Panel(f"loss-{place}", curve.stage, caption, tuple(curves), levels=curve.baselines)
    )


def learning_figures(learning: Learning | None) -> list[Figure]:
    """Draw what is known of every step of reinforcement learning."""
    if learning is None or len(learning.steps) < FEWEST_STEPS:
        return []
    panels: tuple[tuple[str, str, str, Series, dict[str, Any]], ...] = (
        ("reward", "Reward", "mean of a step's completions", learning.reward, {}),
        ("tokens", "Length", "tokens of a completion, mean", learning.tokens, {}),
        (
            "equal",
            "Groups with equal rewards",
            "frac_reward_zero_std: share of groups that teach nothing",
            learning.frac_reward_zero_std,
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
            "sampling_logp_difference: largest of a log-probability in a step",
            [max(value, LOWEST_SHOWN) for value in learning.sampling_logp_difference],
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


def balance_figures(load: ExpertLoad | None) -> list[Figure]:
    """Draw how uneven the load of every layer was, if there are steps enough for curves."""
    if load is None or len(load.steps) < FEWEST_STEPS:
        return []
    curves = tuple(
        Curve(f"layer {layer}", load.steps, [max_vio(row) for row in counts], f"s{place % 5}")
        for place, (layer, counts) in enumerate(load.counts_by_layer.items())
        if len(counts)
    )
    caption = "how far the busiest expert is above an even share; 0 is balanced"
    return [curve_figure(Panel("max-vio", "MaxVio", caption, curves, from_zero=True))]
