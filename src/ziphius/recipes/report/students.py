"""A student beside its teacher, line by line, with what was wanted of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ziphius.recipes.report.sections import Arm, Taught
from ziphius.recipes.report.text import (
    TIMES,
    byte_size,
    gap,
    percent,
    plain,
    points,
    share,
    short,
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
    return TaughtTable(taught.student, taught.teacher, tuple(rows))


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
    return [
        *_ratio("parameters", student.parameters, teacher.parameters, short, at_most),
        *_ratio("tokens/s", student.tokens_per_s, teacher.tokens_per_s, plain, at_least),
        *_ratio("size on disk", student.size_bytes, teacher.size_bytes, byte_size),
        *_ratio(
            "cache a token",
            student.cache_bytes_per_token,
            teacher.cache_bytes_per_token,
            byte_size,
        ),
        *_ratio("training FLOPs", student.training_flops, teacher.training_flops, short),
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
    return [Row(name, written(theirs), written(ours), f"{plain(ours / theirs)}{TIMES}", wanted)]
