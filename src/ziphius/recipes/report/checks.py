"""What the figures of a report tell against it, besides its differences and its students."""

from collections.abc import Iterator, Sequence

from ziphius.recipes.report.sections import Learning, LossCurve, Report
from ziphius.recipes.report.text import listed, percent, plain, quoted, size
from ziphius.train.records import max_vio

UNSOLVED = 0.05
"""pass@1 below which a slice counts as not solved at all."""
WIDE = 0.10
"""Half width of an interval above which the figures say little."""
MUCH_CUT = 0.05
MUCH_EQUAL = 0.5
MUCH_LOAD = 1.0
"""MaxVio at which the busiest expert has twice its share."""


def unsolved_slices(report: Report) -> Iterator[str]:
    """Name slices that nobody solves, and those with too few problems to tell arms apart."""
    for place, first in enumerate(report.arms[0].slices if report.arms else ()):
        found = [arm.slices[place] for arm in report.arms]
        best = max(one.pass_at_1.value for one in found)
        if best < UNSOLVED:
            yield (
                f"No arm solves {quoted(first.name)}: the highest pass@1 there is "
                f"{percent(best, 1)}."
            )
        width = max((one.pass_at_1.high - one.pass_at_1.low) / 2 for one in found)
        if width > WIDE:
            yield (
                f"With {first.problems} problems on {quoted(first.name)} the intervals reach up "
                f"to {size(width)} points to either side: small differences there cannot be seen."
            )


def cut_off(report: Report) -> Iterator[str]:
    """Name the arms whose answers were often cut off, each where that was most often."""
    found = []
    for arm in report.arms:
        share_cut, where = max(((one.truncated, one.name) for one in arm.slices), default=(0.0, ""))
        if share_cut > MUCH_CUT:
            found.append(f"{percent(share_cut)} of {arm.name} on {quoted(where)}")
    if found:
        yield (
            "Answers cut off at the longest length allowed count as wrong, and they are many: "
            f"{listed(found)}."
        )


def unbeaten_baselines(losses: Sequence[LossCurve]) -> Iterator[str]:
    """Name the stages whose loss ends no better than a bigram model's."""
    for curve in losses:
        measured = curve.validation_losses or curve.losses
        bigram = curve.baselines.get("bigram")
        if measured and bigram is not None and measured[-1] >= bigram:
            where = "held-out text" if curve.validation_losses else "its own text"
            yield (
                f"{curve.stage} ends at a loss of {plain(measured[-1])} on {where} and does not "
                f"beat the bigram baseline of {plain(bigram)}."
            )


def learning_problems(learning: Learning | None) -> Iterator[str]:
    """Say whether the reward did not rise, groups taught nothing, or two passes disagreed."""
    if learning is None or not learning.reward:
        return
    quarter = max(1, len(learning.reward) // 4)
    first = sum(learning.reward[:quarter]) / quarter
    last = sum(learning.reward[-quarter:]) / quarter
    if last <= first:
        yield (
            f"The reward did not rise: {plain(first)} in the first quarter of the steps, "
            f"{plain(last)} in the last."
        )
    if equal := learning.frac_reward_zero_std[-quarter:]:
        share = sum(equal) / len(equal)
        if share > MUCH_EQUAL:
            yield (
                f"In the last quarter of the steps {percent(share)} of the groups had equal "
                "rewards (frac_reward_zero_std), and taught nothing."
            )
    # "not <=" so that a difference that is not a number counts as too large.
    wrong = [one for one in learning.sampling_logp_difference if not one <= learning.logprob_bound]
    if wrong:
        yield (
            f"Rollout and trainer disagreed about log-probabilities in {len(wrong)} of "
            f"{len(learning.sampling_logp_difference)} steps, by up to {plain(max(wrong))}, above "
            f"the bound of {plain(learning.logprob_bound)}."
        )


def unbalanced_experts(report: Report) -> Iterator[str]:
    """Name the layers whose busiest expert has far more than its share at the end."""
    if report.experts is None:
        return
    for layer, counts in report.experts.counts_by_layer.items():
        last = counts[-max(1, len(counts) // 10) :]
        found = max_vio([sum(column) for column in zip(*last, strict=True)]) if last else 0.0
        if found > MUCH_LOAD:
            yield (
                f"The experts of layer {layer} are not balanced: at the end of "
                f"{report.experts.stage} the busiest has {plain(1 + found)} times an even share."
            )
