"""`rl/problems.py`: shares, repetition and what a step asks."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.unit.rollout.tasks import Echo, add_echo
from ziphius.rl.problems import ProblemMix
from ziphius.rl.settings import TaskChoice
from ziphius.tasks import TASKS, Problem, Split


class Other(Echo):
    name = "other"

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        found = super().problems(split, level, count, seed)
        return [replace(each, task="other", question=each.question + "!") for each in found]


@pytest.fixture(autouse=True)
def _tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    monkeypatch.setitem(TASKS, "other", Other())


def mix(shares: tuple[float, float] = (3.0, 1.0), per_step: int = 8, seed: int = 0) -> ProblemMix:
    choices = [
        TaskChoice(name=name, share=share)
        for name, share in zip(("echo", "other"), shares, strict=True)
    ]
    return ProblemMix(choices, per_step=per_step, pool=50, seed=seed)


def test_whole_shares_are_kept_in_every_step() -> None:
    for step in range(5):
        problems = mix()(step)
        assert Counter(problem.task for problem in problems) == {"echo": 6, "other": 2}
        assert len({problem.key for problem in problems}) == 8


def test_shares_that_do_not_come_out_even_do_in_the_long_run() -> None:
    found = Counter(problem.task for step in range(400) for problem in mix((2.0, 1.0), 4)(step))
    assert found.total() == 1_600
    assert found["other"] == pytest.approx(1_600 / 3, rel=0.1)


def test_a_step_is_always_the_same_and_others_are_not() -> None:
    steps = [[problem.key for problem in mix()(step)] for step in range(3)]
    assert steps[1] == [problem.key for problem in mix()(1)]
    assert steps[0] != steps[1] != steps[2]
    assert steps[1] != [problem.key for problem in mix(seed=1)(1)]


def test_refills_ask_the_same_tasks_at_the_same_places_and_nothing_twice() -> None:
    for shares in ((3.0, 1.0), (1.0, 1.3)):
        problems = mix(shares)
        rounds = [problems(4, refill) for refill in range(4)]
        assert rounds[0] == problems(4)
        assert len({tuple(problem.task for problem in each) for each in rounds}) == 1
        assert len({problem.key for each in rounds for problem in each}) == 4 * 8
        assert rounds[2] == mix(shares)(4, 2)
        assert rounds[2] != problems(5, 2)
        assert {each.key for each in rounds[2]} != {each.key for each in mix(shares, seed=1)(4, 2)}


def test_a_pool_that_refills_used_up_is_asked_again() -> None:
    problems = mix((1.0, 1.0), per_step=80)  # 40 of 50 each
    first, second = problems(0), problems(0, 1)
    assert len({problem.key for problem in second}) == 80
    assert len({problem.key for problem in first + second}) == 100
    assert len(mix((1.0, 1.0), per_step=120)(0, 3)) == 120  # more than there are


def test_the_fingerprint_names_what_steps_hang_on() -> None:
    mixes = [mix(), mix(seed=1), mix((1.0, 1.0)), mix(per_step=4)]
    assert len({each.fingerprint() for each in mixes}) == 4
    assert len(mix().all()) == 100
