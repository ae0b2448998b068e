"""What students kept of the models that they were made from, in words.

A size is never said by one count alone: parameters in all, those that a token uses, and FLOPs a
token stand together.
"""

from collections.abc import Iterator, Mapping

from ziphius.recipes.report.sections import Arm, Difference, Report, Taught
from ziphius.recipes.report.text import (
    TIMES,
    gap,
    listed,
    percent,
    plain,
    quoted,
    share,
    size,
    times,
)


def student_differences(report: Report) -> list[Difference]:
    """Return the differences of students to arms other than their teachers: their controls."""
    students = {one.student for one in report.taught}
    return [one for one in report.differences if one.ours in students]


def taught_sentences(report: Report) -> Iterator[str]:
    """Say what each student kept or lost, at which speed and size."""
    arms = {arm.name: arm for arm in report.arms}
    for one in report.taught:
        cost = _cost(arms, one)
        asked = f"; both asked {quoted(one.way)}" if one.way else ""
        where = f" on {quoted(one.slice)}" if one.slice else ""
        if one.kept is not None:
            value, interval = share(one.kept)
            yield (
                f"{one.student} keeps {value} % of the pass@1 of {one.teacher}{where} (95 % "
                f"interval {interval} %{asked}){cost}."
            )
        elif one.lost is not None:
            value, interval = gap(one.lost)
            yield (
                f"{one.student} is at {value} points against {one.teacher}{where} (95 % interval "
                f"{interval}{asked}){cost}."
            )


def taught_class(taught: Taught) -> str:
    """Judge a student by its worst message; "better" where all that was wanted is certain."""
    found = [*_kept_too_little(taught), *_lost_too_much(taught)]
    if not found:
        return "better"
    kept, lost = taught.kept, taught.lost
    is_short = kept is not None and kept.value < (taught.least_kept or 0.0)
    is_low = lost is not None and -lost.value > (taught.most_lost or 0.0)
    return "worse" if is_short or is_low else "unsure"


def untaught(report: Report) -> Iterator[str]:
    """Say where a student is not what was wanted of it."""
    arms = {arm.name: arm for arm in report.arms}
    for taught in report.taught:
        yield from _kept_too_little(taught)
        yield from _lost_too_much(taught)
        student, teacher = arms.get(taught.student), arms.get(taught.teacher)
        if student is not None and teacher is not None:
            yield from _not_smaller_or_faster(taught, student, teacher)


def _cost(arms: Mapping[str, Arm], taught: Taught) -> str:
    """Say how fast a student is, and how large in every count that is known."""
    student, teacher = arms.get(taught.student), arms.get(taught.teacher)
    if student is None or teacher is None:
        return ""
    said = []
    if student.tokens_per_s and teacher.tokens_per_s:
        said.append(f"at {times(student.tokens_per_s, teacher.tokens_per_s)} the tokens/s")
    if sizes := _sizes(student, teacher):
        said.append(f"with {sizes}")
    return f", {' '.join(said)}" if said else ""


def _sizes(student: Arm, teacher: Arm) -> str:
    """Write a student's size as shares of its teacher's; nothing where all are the same."""
    pairs = (
        ("parameters", student.parameters, teacher.parameters),
        ("active parameters", student.active_parameters, teacher.active_parameters),
        ("FLOPs a token", student.flops_per_token, teacher.flops_per_token),
    )
    known = [(ours / theirs, name) for name, ours, theirs in pairs if ours and theirs]
    if all(ratio == 1.0 for ratio, _ in known):
        return ""
    return listed([f"{percent(ratio)} of the {name}" for ratio, name in known])


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
                f"{student.name} has {_sizes(student, teacher) or 'all of the parameters'} of "
                f"{teacher.name}; at most {percent(taught.most_parameters)} of the parameters were "
                "wanted."
            )
    if taught.least_speed is not None and student.tokens_per_s and teacher.tokens_per_s:
        speed = student.tokens_per_s / teacher.tokens_per_s
        if speed < taught.least_speed:
            yield (
                f"{student.name} runs at {plain(speed)}{TIMES} the tokens/s of {teacher.name}; "
                f"{plain(taught.least_speed)}{TIMES} was wanted."
            )
