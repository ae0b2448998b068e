"""What the figures say, in words: sentences that are made from the numbers, never beside them.

A sentence about a difference comes from its interval. Where the interval includes 0 the page says
that nothing was shown, however good the mean looks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ziphius.evals.intervals import Estimate
from ziphius.recipes.report.sections import Arm, Difference, Learning, LossCurve, Report, Taught
from ziphius.recipes.report.text import TIMES, duration, gap, percent, plain, share, size
from ziphius.train.records import max_vio

UNSOLVED = 0.05
"""pass@1 below which a slice counts as not solved at all."""
WIDE = 0.10
"""Half width of an interval above which the figures say little."""
MUCH_CUT = 0.05
MUCH_DEAD = 0.5
MUCH_LOAD = 1.0
"""MaxVio at which the busiest expert has twice its share."""


@dataclass(frozen=True)
class Headline:
    """One large number at the top of the page."""

    value: str
    label: str
    detail: str
    class_: str = ""


def headlines(report: Report) -> list[Headline]:
    """Choose the numbers that the run was made for."""
    found = []
    for one in goals(report):
        value, interval = gap(one.estimate)
        label = f"points: {one.ours} against {one.theirs}, {one.slice}"
        found.append(Headline(value, label, f"95 % interval {interval}", standing(one.estimate)))
    for taught in report.taught:
        if taught.kept is not None:
            value, interval = share(taught.kept)
            label = f"of {taught.teacher}'s pass@1 kept by {taught.student}"
            found.append(
                Headline(f"{value} %", label, f"95 % interval {interval} %", _taught_class(taught))
            )
        elif taught.lost is not None:
            value, interval = gap(taught.lost)
            label = f"points: {taught.student} against {taught.teacher}"
            found.append(Headline(value, label, f"95 % interval {interval}", _taught_class(taught)))
    if report.costs:
        total = sum(cost.seconds for cost in report.costs)
        found.append(
            Headline(duration(total), "for all stages", f"{len(report.costs)} stages, listed below")
        )
    return found


def standing(estimate: Estimate) -> str:
    """Name the side of 0 that an interval is on, as the page's style does."""
    if estimate.covers(0.0):
        return "unsure"
    return "better" if estimate.value > 0.0 else "worse"


def goals(report: Report) -> list[Difference]:
    """Return the differences that the run was made to show."""
    return [one for one in report.differences if one.is_goal]


def findings(report: Report) -> list[str]:
    """Say what the run showed: the sentences of the summary."""
    said = [_difference(one) for one in goals(report)]
    said += [sentence for taught in report.taught for sentence in _taught(taught)]
    problems = len(failures(report))
    if problems:
        things = "One thing" if problems == 1 else f"{problems} things"
        said.append(f"{things} did not work or could not be shown; see below.")
    return said


def failures(report: Report) -> list[str]:
    """Say what did not work or was not shown: what the figures tell, and what a recipe adds."""
    checks = (
        _unshown_differences(report),
        _untaught(report),
        _slices(report),
        _cut_off(report),
        _floors(report.losses),
        _learning(report.learning),
        _balance(report),
    )
    return [sentence for check in checks for sentence in check] + list(report.failures)


def _difference(one: Difference) -> str:
    value, interval = gap(one.estimate)
    if one.estimate.low > 0:
        return (
            f"{one.ours} beats {one.theirs} on {_quoted(one.slice)} by "
            f"{size(one.estimate.value)} points of pass@1 (95 % interval {interval})."
        )
    if one.estimate.high < 0:
        return (
            f"{one.ours} is worse than {one.theirs} on {_quoted(one.slice)}: {value} points of "
            f"pass@1 (95 % interval {interval})."
        )
    return (
        f"On {_quoted(one.slice)} the difference of {one.ours} to {one.theirs} is {value} points "
        f"of pass@1, and its 95 % interval ({interval}) includes 0: this run does not show that "
        "one is better."
    )


def _unshown_differences(report: Report) -> Iterator[str]:
    """Say for each pair of arms where nothing was shown, and where the first is worse."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for one in report.differences:
        pairs.setdefault((one.ours, one.theirs), []).append(one)
    for (ours, theirs), differences in pairs.items():
        unsure = [one for one in differences if one.estimate.covers(0.0)]
        worse = [one for one in differences if one.estimate.high < 0.0]
        if worse:
            yield f"{ours} is worse than {theirs} on {_listed(map(_gap_on, worse))}."
        if unsure:
            yield (
                f"No difference between {ours} and {theirs} is shown on "
                f"{_listed(map(_gap_on, unsure))}: each interval includes 0."
            )


def _gap_on(one: Difference) -> str:
    value, interval = gap(one.estimate)
    return f"{_quoted(one.slice)} ({value} points, {interval})"


def _quoted(name: str) -> str:
    return f"\u201c{name}\u201d"


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _taught(taught: Taught) -> Iterator[str]:
    if taught.kept is not None:
        value, interval = share(taught.kept)
        yield (
            f"{taught.student} keeps {value} % of the pass@1 of {taught.teacher} "
            f"(95 % interval {interval} %)."
        )
    elif taught.lost is not None:
        value, interval = gap(taught.lost)
        yield (
            f"{taught.student} is at {value} points against {taught.teacher} "
            f"(95 % interval {interval})."
        )


def _taught_class(taught: Taught) -> str:
    """Judge a student by its worst message; "better" where all that was wanted is certain."""
    found = [*_kept_too_little(taught), *_lost_too_much(taught)]
    if not found:
        return "better"
    kept, lost = taught.kept, taught.lost
    is_short = kept is not None and kept.value < (taught.least_kept or 0.0)
    is_low = lost is not None and -lost.value > (taught.most_lost or 0.0)
    return "worse" if is_short or is_low else "unsure"


def _untaught(report: Report) -> Iterator[str]:
    arms = {arm.name: arm for arm in report.arms}
    for taught in report.taught:
        yield from _kept_too_little(taught)
        yield from _lost_too_much(taught)
        student, teacher = arms.get(taught.student), arms.get(taught.teacher)
        if student is not None and teacher is not None:
            yield from _not_smaller_or_faster(taught, student, teacher)


def _kept_too_little(taught: Taught) -> Iterator[str]:
    kept, least = taught.kept, taught.least_kept
    if kept is None or least is None:
        return
    head = f"{taught.student} keeps {percent(kept.value, 1)} of the pass@1 of {taught.teacher}"
    if kept.value < least:
        yield f"{head}; {percent(least)} were wanted."
    elif kept.low < least:
        yield (
            f"{head}, but its interval reaches down to {percent(kept.low)}, below the "
            f"{percent(least)} wanted."
        )


def _lost_too_much(taught: Taught) -> Iterator[str]:
    lost, most = taught.lost, taught.most_lost
    if lost is None or most is None:
        return
    allowed = size(most)
    if -lost.value > most:
        yield (
            f"{taught.student} loses {size(lost.value)} points against {taught.teacher}; {allowed} "
            "were allowed."
        )
    elif -lost.low > most:
        yield (
            f"{taught.student} may lose up to {size(lost.low)} points against {taught.teacher} by "
            f"its interval, more than the {allowed} allowed."
        )


def _not_smaller_or_faster(taught: Taught, student: Arm, teacher: Arm) -> Iterator[str]:
    if taught.most_parameters is not None and student.parameters and teacher.parameters:
        found = student.parameters / teacher.parameters
        if found > taught.most_parameters:
            yield (
                f"{student.name} has {percent(found)} of the parameters of {teacher.name}; at most "
                f"{percent(taught.most_parameters)} were wanted."
            )
    if taught.least_speed is not None and student.tokens_per_s and teacher.tokens_per_s:
        speed = student.tokens_per_s / teacher.tokens_per_s
        if speed < taught.least_speed:
            yield (
                f"{student.name} runs at {plain(speed)}{TIMES} the tokens/s of {teacher.name}; "
                f"{plain(taught.least_speed)}{TIMES} was wanted."
            )


def _slices(report: Report) -> Iterator[str]:
    for place, first in enumerate(report.arms[0].slices if report.arms else ()):
        found = [arm.slices[place] for arm in report.arms]
        best = max(one.pass_at_1.value for one in found)
        if best < UNSOLVED:
            yield (
                f"No arm solves {_quoted(first.name)}: the highest pass@1 there is "
                f"{percent(best, 1)}."
            )
        width = max((one.pass_at_1.high - one.pass_at_1.low) / 2 for one in found)
        if width > WIDE:
            yield (
                f"With {first.problems} problems on {_quoted(first.name)} the intervals reach up "
                f"to {size(width)} points to either side: small differences there cannot be seen."
            )


def _cut_off(report: Report) -> Iterator[str]:
    """Name the arms whose answers were often cut off, each where that was most often."""
    found = []
    for arm in report.arms:
        share_cut, where = max(((one.truncated, one.name) for one in arm.slices), default=(0.0, ""))
        if share_cut > MUCH_CUT:
            found.append(f"{percent(share_cut)} of {arm.name} on {_quoted(where)}")
    if found:
        yield (
            "Answers cut off at the longest length allowed count as wrong, and they are many: "
            f"{_listed(found)}."
        )


def _floors(losses: tuple[LossCurve, ...]) -> Iterator[str]:
    for curve in losses:
        measured = curve.validation_losses or curve.losses
        bigram = curve.floors.get("bigram")
        if measured and bigram is not None and measured[-1] >= bigram:
            where = "held-out text" if curve.validation_losses else "its own text"
            yield (
                f"{curve.stage} ends at a loss of {plain(measured[-1])} on {where} and does not "
                f"beat the bigram floor of {plain(bigram)}."
            )


def _learning(learning: Learning | None) -> Iterator[str]:
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
    if learning.dead_groups:
        dead = sum(learning.dead_groups[-quarter:]) / len(learning.dead_groups[-quarter:])
        if dead > MUCH_DEAD:
            yield (
                f"In the last quarter of the steps {percent(dead)} of the groups taught nothing, "
                "because their answers were all right or all wrong."
            )
    # "not <=" so that a difference that is not a number counts as too large.
    wrong = [one for one in learning.logprob_difference if not one <= learning.logprob_bound]
    if wrong:
        yield (
            f"Rollout and trainer disagreed about log-probabilities in {len(wrong)} of "
            f"{len(learning.logprob_difference)} steps, by up to {plain(max(wrong))}, above the "
            f"bound of {plain(learning.logprob_bound)}."
        )


def _balance(report: Report) -> Iterator[str]:
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
