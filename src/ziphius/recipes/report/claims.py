"""The first sentences of a report: what was compared with what, what was gained, and what was not.

They say what the intervals say and no more: a gain where an interval lies above 0, a loss where it
lies below, and neither where it includes 0, its ends too.
"""

from collections.abc import Iterator, Mapping, Sequence

from ziphius.recipes.report.sections import BEST_WAY, Arm, Difference, Report
from ziphius.recipes.report.text import (
    counted,
    duration,
    gap,
    listed,
    quoted,
    short,
    size,
    standing,
    times,
)

NO_CLAIM = "No arm here is compared with the best of its controls, so this run claims no gain."
LISTED_LOSSES = 3


def claim(report: Report) -> Difference | None:
    """Return the difference that the report is about: a goal, against the best control if known.

    What a student was to gain is no part of it.
    """
    students = {one.student for one in report.taught}
    goals = [one for one in report.differences if one.is_goal and one.ours not in students]
    return next((one for one in goals if one.is_best_control), goals[0] if goals else None)


def claims(report: Report) -> list[str]:
    """Say what was compared with what, what was gained over the best control, and what was not."""
    main = claim(report)
    if main is None:
        return [NO_CLAIM] if report.arms else []
    among = [one for one in report.differences if one.ours == main.ours]
    return [_compared(report, main, among), _gained(main), _not_gained(among)]


def unshown(report: Report) -> Iterator[str]:
    """Say for each pair of arms where the first is not shown to be better, or is worse."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for one in report.differences:
        pairs.setdefault((one.ours, one.theirs), []).append(one)
    for (ours, theirs), differences in pairs.items():
        missed = _missed(differences)
        if not missed:
            continue
        yield (
            f"{ours} is not shown to be better than {theirs} {_where(missed, differences)}."
            f"{_losses(missed)}"
        )


def gained(one: Difference, *, theirs: str = "") -> str:
    """Say what a difference shows.

    Args:
        one: the difference.
        theirs: what the other arm is called in the sentence, if not by its name.
    """
    value, interval = gap(one.estimate)
    theirs, where = theirs or one.theirs, quoted(one.slice)
    of = f"over {one.estimate.seeds} seeds" if one.estimate.seeds > 1 else "of this one seed"
    about = f"95 % interval {of} {interval}{_seeds(one)}{asked(one)}"
    found = standing(one.estimate)
    if found == "better":
        amount = f"{size(one.estimate.value)} percentage points on {where}"
        return f"Over {theirs}, {one.ours} gained {amount} ({about})."
    if found == "worse":
        amount = f"{size(one.estimate.value)} percentage points on {where}"
        return f"Against {theirs}, {one.ours} lost {amount} ({about})."
    return (
        f"Over {theirs}, {one.ours} is not shown to have gained anything: {value} percentage "
        f"points on {where}, an interval that includes 0 ({about})."
    )


def asked(one: Difference) -> str:
    """Say how both arms of a difference were asked, to go on after an interval."""
    ours, theirs = one.ways
    if one.way == BEST_WAY and not (ours and theirs):
        return "; each in its best way"
    if one.way != BEST_WAY or ours == theirs:
        return f"; both asked {quoted(one.way if one.way != BEST_WAY else ours)}"
    return f"; {one.ours} asked {quoted(ours)}, {one.theirs} {quoted(theirs)}"


def way_words(way: str) -> str:
    """Say how both arms of a difference were asked."""
    return "each in its best way" if way == BEST_WAY else way


def _compared(report: Report, main: Difference, among: Sequence[Difference]) -> str:
    arms = {arm.name: arm for arm in report.arms}
    ours = arms.get(main.ours)
    controls = dict.fromkeys(one.theirs for one in among)
    who = listed([_control(name, ours, arms) for name in controls])
    asked = "in its own best way, which was chosen on development problems"
    if main.way != BEST_WAY:
        asked = quoted(main.way)
    return (
        f"{main.ours}{_spent(ours, arms)} was compared with {who}, each asked {asked}"
        f"{_problems(main, ours)}."
    )


def _spent(ours: Arm | None, arms: Mapping[str, Arm]) -> str:
    """Say what an arm took beyond the one that it began with, where both are known."""
    start = arms.get(ours.start) if ours is not None else None
    if ours is None or start is None:
        return ""
    flops, seconds = _beyond(ours, start)
    spent = [f"{short(flops)} FLOPs"] if flops else []
    spent += [duration(seconds)] if seconds else []
    return f" ({listed(spent)} beyond {start.name})" if spent else ""


def _control(name: str, ours: Arm | None, arms: Mapping[str, Arm]) -> str:
    """Name a control, with where it began and what it spent, as far as that is known."""
    control = arms.get(name)
    if ours is None or not ours.start or control is None:
        return name
    if name == ours.start:
        return f"{name} (where it began)"
    start = arms.get(ours.start)
    if control.start != ours.start or start is None:
        return f"{name} (from another start)"
    (flops, seconds), (own_flops, own_seconds) = _beyond(control, start), _beyond(ours, start)
    spent = []
    if flops and own_flops:
        spent.append(f"{'only ' * (flops < own_flops)}{times(flops, own_flops)} the FLOPs")
    if seconds and own_seconds:
        spent.append(f"{times(seconds, own_seconds)} the time")
    return f"{name} (from the same start{f', with {listed(spent)}' if spent else ''})"


def _beyond(arm: Arm, start: Arm) -> tuple[float, float]:
    """Return the FLOPs and seconds that an arm took beyond another; 0 where they are not known."""
    flops = (arm.training_flops or 0.0) - (start.training_flops or 0.0)
    seconds = (arm.training_s or 0.0) - (start.training_s or 0.0)
    has_flops = arm.training_flops is not None and start.training_flops is not None
    has_seconds = arm.training_s is not None and start.training_s is not None
    return flops if has_flops else 0.0, seconds if has_seconds else 0.0


def _problems(main: Difference, ours: Arm | None) -> str:
    found = [one for one in (ours.slices if ours else ()) if one.name == main.slice]
    seeds = f" at each of {main.estimate.seeds} seeds" if main.estimate.seeds > 1 else ""
    if not found:
        return seeds
    problems = counted(found[0].problems, "held-out problem")
    return f": {problems}{seeds}, up to {counted(found[0].samples, 'answer')} to each"


def _gained(main: Difference) -> str:
    best = (
        f"{main.theirs}, the best of these controls on development problems"
        if main.is_best_control
        else ""
    )
    return gained(main, theirs=best)


def _not_gained(among: Sequence[Difference]) -> str:
    """Count where nothing was gained, and name the worst of it."""
    of = (
        f"{counted(len(among), 'comparison')} "
        f"({counted(len({one.theirs for one in among}), 'control')}, "
        f"{counted(len({one.slice for one in among}), 'slice')}, "
        f"{counted(len({one.way for one in among}), 'way')} of asking)"
    )
    missed = _missed(among)
    if not missed:
        least = min(among, key=lambda one: one.estimate.value)
        return f"The interval lies above 0 in all of {of}; the smallest gain is {_place(least)}."
    worse = sum(standing(one.estimate) == "worse" for one in missed)
    unsure = len(missed) - worse
    what = [f"includes 0 in {unsure}"] if unsure else []
    what += [f"lies below 0 in {worse}"] if worse else []
    worst = min(missed, key=lambda one: one.estimate.value)
    return (
        f"No gain is shown in {len(missed)} of {of}: the interval {listed(what)}; the worst is "
        f"{_place(worst)}."
    )


def _missed(differences: Sequence[Difference]) -> list[Difference]:
    return [one for one in differences if standing(one.estimate) != "better"]


def _where(missed: Sequence[Difference], of: Sequence[Difference]) -> str:
    """Say in which comparisons nothing is shown."""
    if len(missed) == len(of) > 1:
        return f"in any of {len(of)} comparisons"
    places: dict[str, list[str]] = {}
    for one in missed:
        places.setdefault(one.slice, []).append(way_words(one.way))
    where = "; ".join(f"{quoted(name)} ({', '.join(ways)})" for name, ways in places.items())
    return f"in {len(missed)} of {counted(len(of), 'comparison')}: {where}"


def _losses(missed: Sequence[Difference]) -> str:
    """Name the worst of the comparisons that show a loss."""
    worse = [one for one in missed if standing(one.estimate) == "worse"]
    if not worse:
        return ""
    worst = sorted(worse, key=lambda one: one.estimate.value)[:LISTED_LOSSES]
    places = "; ".join(
        f"{way_words(one.way)} on {quoted(one.slice)}, {_points(one)}" for one in worst
    )
    more = f"; and {len(worse) - len(worst)} more" if len(worse) > len(worst) else ""
    return f" It is worse in {len(worse)} of them ({places}{more})."


def _place(one: Difference) -> str:
    return f"{quoted(one.slice)} against {one.theirs}, {way_words(one.way)}: {_points(one)}"


def _points(one: Difference) -> str:
    value, interval = gap(one.estimate)
    return f"{value} points ({interval})"


def _seeds(one: Difference) -> str:
    if not one.by_seed:
        return ""
    above = sum(value > 0.0 for value in one.by_seed)
    return f"; above 0 at {above} of {counted(len(one.by_seed), 'seed')}"
