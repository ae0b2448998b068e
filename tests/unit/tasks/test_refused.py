"""Every reason for a refusal is shown on the package itself, so that an old one is noticed."""

import datetime
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
import reasoning_gym.code.codeio

from ziphius.tasks import REFUSED, TASKS, get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.search import SearchTask


def made(name: str, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return a family and some of its entries."""
    family = reasoning_gym.create_dataset(name, size=20, seed=3, **settings)
    return family, [family[i] for i in range(8)]


def runs_code(name: str, folder: Path) -> bool:
    family, entries = made(name)
    code = f"__import__('pathlib').Path({str(folder / 'ran')!r}).touch()"
    for answer in (code, f"[{code}]"):
        try:
            family.score_answer(answer, entries[0])
        except Exception:  # what the code returned is no answer
            continue
    return (folder / "ran").exists()


def has_no_answer(name: str, folder: Path) -> bool:
    return any(entry["answer"] is None for entry in made(name)[1])


def scores(answer: str, **settings: Any) -> Callable[[str, Path], bool]:
    def takes(name: str, folder: Path) -> bool:
        family, entries = made(name, **settings)
        wrong = [entry for entry in entries if entry["answer"] != answer]
        return sum(family.score_answer(answer, entry) == 1.0 for entry in wrong) >= 5

    return takes


def takes_neighbours(name: str, folder: Path) -> bool:
    family, (entry, *_) = made(name)
    near = [str(float(number) + 0.9) for number in entry["metadata"]["sorted_numbers"]]
    return bool(family.score_answer(str(near), entry) == 1.0)


def breaks_off(name: str, folder: Path) -> bool:
    family, (entry, *_) = made(name)
    with pytest.raises(KeyError):
        family.score_answer("{}", entry)
    return True


def knows_the_day(name: str, folder: Path) -> bool:
    entry = made(name, task_types=["time"])[1][0]
    return str(entry["metadata"]["start_time"]).startswith(str(datetime.date.today()))


def needs_others(name: str, folder: Path) -> bool:
    with pytest.raises(AssertionError, match="least one dataset"):
        made(name)
    return True


def runs_its_data(name: str, folder: Path) -> bool:
    return "exec(" in inspect.getsource(reasoning_gym.code.codeio)


EVIDENCE: dict[str, Callable[[str, Path], bool]] = {
    **{name: runs_code for name, reason in REFUSED.items() if "answer as Python" in reason},
    **{name: has_no_answer for name, reason in REFUSED.items() if "without an answer" in reason},
    "codeio": runs_its_data,
    "game_of_life_halting": scores("junk"),
    "coin_flip": scores("0"),
    "complex_arithmetic": scores("nan"),
    "number_sorting": takes_neighbours,
    "game_of_life": breaks_off,
    "time_intervals": knows_the_day,
    "composite": needs_others,
}
PRINTING = {"bf", "tower_of_hanoi"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_family_deserves_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in PRINTING:
        family, entries = made(name)
        for entry, other in itertools.product(entries, repeat=2):
            family.score_answer(other["answer"], entry)
        assert capsys.readouterr().out
    else:
        assert EVIDENCE[name](name, tmp_path)
    with pytest.raises(TaskError, match=REFUSED[name].replace("{}", r"\{\}")):
        get_task(name)


def test_nothing_is_both_wrapped_and_refused() -> None:
    assert not set(TASKS) & set(REFUSED)
    ours = {name for name, task in TASKS.items() if isinstance(task, SearchTask)}
    assert set(TASKS) - ours | set(REFUSED) <= set(reasoning_gym.factory.DATASETS)
