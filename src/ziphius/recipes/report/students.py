"""Tables of students: all sizes and FLOPs, and each beside its teacher with what was wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ziphius.recipes.report.figure import Table
from ziphius.recipes.report.sections import Arm, Report, Taught
from ziphius.recipes.report.taught import student_differences
from ziphius.recipes.report.text import (
    DASH,
    TIMES,
    byte_size,
    gap,
    percent,
    plain,
    points,
    quoted,
    share,
    short,
    times,
)

AT_MOST, AT_LEAST = "\u2264", "\u2265"


class Row(NamedTuple):
    """One line of words."""

    name: str
    teacher: str = ""
    student: str = ""
    ratio: str = ""
    """Of the student to the teacher."""
    wanted: str = ""


@dataclass(frozen=True)
class TaughtTable:
    """A student beside its teacher."""

    student: str
    teacher: str
    rows: tuple[Row, ...]
    asked: str
    """Where and how both were."""


def student_arms(report: Report) -> list[Arm]:
    """Return the students, what they were made from and what they are compared with, in order."""
    names = {name for one in report.taught for name in (one.student, one.teacher)}
    names |= {one.theirs for one in student_differences(report)}
    return [arm for arm in report.arms if arm.name in names]


def size_table(report: Report) -> Table:
    """Lay out every count of the students' sizes beside their speed and what they solve."""
    arms = student_arms(report)
    slices = arms[0].slices if arms else ()
    headers = ("model", "numbers", "parameters", "active", "FLOPs a token", "on disk", "tokens/s")
    # The first slice alone, with its interval: the table of the arms has them all.
    rows = []
    for arm in arms:
        counts = (arm.parameters, arm.active_parameters, arm.flops_per_token)
        rows.append(
            (
                arm.name,
                arm.dtype or DASH,
                *(_known(count, short) for count in counts),
                _known(arm.size_bytes, byte_size),
                _known(arm.tokens_per_s, plain),
                *(f"{' ['.join(share(one.pass_at_1))}] %" for one in arm.slices[:1]),
            )
        )
    solved = [f"pass@1, {one.name}" for one in slices[:1]]
    return Table("Size, speed and accuracy", (*headers, *solved), tuple(rows))


def spending_table(report: Report) -> Table:
    """Lay out the FLOPs of each student: its teacher's answers, its own training, and all before.

    A student's part is every stage that led to it and not to its teacher.
    """
    flops = {cost.stage: cost.flops for cost in report.costs}
    arms = student_arms(report)
    teachers = (
        [arm for arm in arms if arm.name == report.taught[0].teacher] if report.taught else []
    )
    common = {stage for arm in teachers for stage in arm.stages}
    rows = []
    for arm in arms:
        own = [stage for stage in arm.stages if stage not in common]
        if not own:
            continue
        parts = [f"{stage} {short(spent)}" for stage in own if (spent := flops.get(stage))]
        together = sum(flops.get(stage) or 0.0 for stage in own)
        rows.append(
            (arm.name, " + ".join(parts), short(together), _known(arm.training_flops, short))
        )
    headers = ("student", "stages, FLOPs", "together", "with all that led to it")
    return Table("FLOPs of the students", headers, tuple(rows))


def _known(value: float | None, written: Callable[[float], str]) -> str:
    return DASH if value is None else written(value)


def taught_table(taught: Taught, arms: Sequence[Arm]) -> TaughtTable:
    """Lay out what is known of a student and its teacher."""
    known = {arm.name: arm for arm in arms}
    teacher, student = known.get(taught.teacher), known.get(taught.student)
    rows = _kept(taught)
    if teacher is not None and student is not None:
        rows += [
            Row(
                ours.name,
                f"{share(theirs.pass_at_1)[0]} %",
                f"{share(ours.pass_at_1)[0]} %",
            )
            for ours, theirs in zip(student.slices, teacher.slices, strict=True)
        ]
        rows += _ratios(taught, student, teacher)
    asked = ", ".join(
        [f"on {quoted(taught.slice)}"] * bool(taught.slice)
        + [f"asked {quoted(taught.way)}"] * bool(taught.way)
    )
    return TaughtTable(taught.student, taught.teacher, tuple(rows), asked)


def _kept(taught: Taught) -> list[Row]:
    rows = []
    if taught.kept is not None:
        value, interval = share(taught.kept)
        least = taught.least_kept
        wanted = "" if least is None else f"{AT_LEAST} {percent(least)}"
        rows.append(Row("pass@1 kept", ratio=f"{value} % [{interval}]", wanted=wanted))
    if taught.lost is not None:
        value, interval = gap(taught.lost)
        most = taught.most_lost
        wanted = "" if most is None else f"{AT_LEAST} {points(-most)}"
        rows.append(Row("pass@1, in points", ratio=f"{value} [{interval}]", wanted=wanted))
    return rows


def _ratios(taught: Taught, student: Arm, teacher: Arm) -> list[Row]:
    size, speed = taught.most_parameters, taught.least_speed
    at_most = "" if size is None else f"{AT_MOST} {plain(size)}{TIMES}"
    at_least = "" if speed is None else f"{AT_LEAST} {plain(speed)}{TIMES}"
    numbers = []
    if student.dtype and teacher.dtype:
        numbers = [Row("numbers", teacher.dtype, student.dtype)]
    return [
        *numbers,
        *_ratio("parameters", student.parameters, teacher.parameters, short, at_most),
        *_ratio("active parameters", student.active_parameters, teacher.active_parameters, short),
        *_ratio("FLOPs a token", student.flops_per_token, teacher.flops_per_token, short),
        *_ratio("tokens/s", student.tokens_per_s, teacher.tokens_per_s, plain, at_least),
        *_ratio("size on disk", student.size_bytes, teacher.size_bytes, byte_size),
        *_ratio(
            "cache a token",
            student.cache_bytes_per_token,
            teacher.cache_bytes_per_token,
            byte_size,
        ),
    ]


def _ratio(
    name: str,
    ours: float | None,
    theirs: float | None,
    written: Callable[[float], str],
    wanted: str = "",
) -> list[Row]:
    """Compare one figure, where both were measured."""
    if ours is None or not theirs:
        return []
    return [Row(name, written(theirs), written(ours), times(ours, theirs), wanted)]
