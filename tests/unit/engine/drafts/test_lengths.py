"""How many drafts: the best of all choices, by what was measured."""

import itertools
import random

import pytest

from ziphius.engine.drafts.lengths import Acceptance, Costs, DraftLengths, LineFit, best_lengths
from ziphius.engine.sequence import Request, SequenceState


def per_second(rates: list[float], lengths: tuple[int, ...], costs: Costs) -> float:
    tokens = sum(
        1 + sum(p**i for i in range(1, n + 1)) for p, n in zip(rates, lengths, strict=True)
    )
    rows = len(rates) + sum(lengths)
    return tokens / (costs.step + costs.row * rows + costs.drafting * max(lengths))


def test_no_other_choice_gives_more_tokens_per_second() -> None:
    generator = random.Random(0)
    kinds = set()
    for _ in range(120):
        rates = [generator.random() for _ in range(3)]
        room = [generator.randrange(4) for _ in range(3)]
        costs = Costs(1.0, generator.choice([0.01, 0.1, 0.5]), generator.choice([0.0, 0.05, 0.4]))
        lengths = best_lengths(rates, room, 3, costs)
        kinds.add(tuple(lengths))
        choices = itertools.product(*(range(n + 1) for n in room))
        best = max(per_second(rates, choice, costs) for choice in choices)
        # A gain of less than 2% is not taken.
        assert per_second(rates, tuple(lengths), costs) >= best / 1.02 - 1e-12
        assert all(n <= most for n, most in zip(lengths, room, strict=True))
    assert (0, 0, 0) in kinds
    assert len(kinds) > 20


def test_the_line_through_measurements_forgets_old_ones() -> None:
    fit = LineFit()
    assert fit.line() is None
    fit.add(2, 5.0)
    fit.add(2, 5.0)
    assert fit.line() is None
    for x in (1, 2, 3, 4):
        fit.add(x, 10.0 + 2 * x)
    for _ in range(200):
        for x in (1, 4):
            fit.add(x, 3.0 + 0.5 * x)
    assert fit.line() == pytest.approx((3.0, 0.5), rel=1e-3)
    for _ in range(200):
        for x in (1, 4):
            fit.add(x, 3.0 - 0.5 * x)
    line = fit.line()
    assert line is not None
    assert line[1] == 0


def test_acceptance_counts_tries_up_to_the_first_rejected_one() -> None:
    acceptance = Acceptance(0.5, 1.0)
    assert acceptance.rate == 0.5
    for _ in range(1000):
        acceptance.add(4, 1)  # one right, one wrong, two that tell nothing
    assert acceptance.rate == pytest.approx(0.5, abs=1e-3)
    for _ in range(10_000):
        acceptance.add(4, 4)
    assert acceptance.rate == pytest.approx(41_000 / 42_000, abs=1e-3)


def sequences(count: int, new: int = 10_000) -> list[SequenceState]:
    return [SequenceState(Request([1, 2], new), number, 0) for number in range(count)]


def run(
    count: int, steps: int, *, rate: float, row: float, drafting: float = 0.0, adaptive: bool = True
) -> tuple[DraftLengths, list[list[int]]]:
    """Let steps take 1 second and `row` for each row; accept by chance."""
    chooser, running = DraftLengths(4, adaptive=adaptive), sequences(count)
    generator, chosen = random.Random(1), []
    for _ in range(steps):
        lengths = chooser.choose(running)
        chosen.append(lengths)
        for sequence, drafted in zip(running, lengths, strict=True):
            accepted = 0
            while accepted < drafted and generator.random() < rate:
                accepted += 1
            if drafted:
                chooser.learn(sequence, drafted, accepted)
        deepest = max(lengths)
        chooser.time(
            count + sum(lengths), 1 + row * (count + sum(lengths)), deepest, drafting * deepest
        )
    return chooser, chosen


def drafted_share(chosen: list[list[int]]) -> float:
    late = chosen[len(chosen) // 2 :]
    return sum(map(sum, late)) / sum(4 * len(lengths) for lengths in late)


def test_many_drafts_where_they_are_right_and_rows_cost_little() -> None:
    _, chosen = run(2, 400, rate=0.95, row=0.01)
    assert drafted_share(chosen) > 0.9


@pytest.mark.parametrize(
    ("rate", "row", "drafting"), [(0.1, 0.5, 0.0), (0.6, 2.0, 0.0), (0.8, 0.01, 3.0)]
)
def test_none_where_it_does_not_pay_but_a_look_now_and_then(
    rate: float, row: float, drafting: float
) -> None:
    _, chosen = run(2, 400, rate=rate, row=row, drafting=drafting)
    late = chosen[100:]
    drafted = [lengths for lengths in late if any(lengths)]
    assert 0 < len(drafted) <= len(late) / 30


def test_the_same_rate_pays_alone_and_not_in_a_large_batch() -> None:
    _, alone = run(1, 300, rate=0.5, row=0.15)
    _, many = run(64, 300, rate=0.5, row=0.15)
    assert drafted_share(alone) > 0.2
    assert drafted_share(many) < 0.1


def test_without_adaption_there_are_as_many_as_are_of_use() -> None:
    chooser = DraftLengths(4, adaptive=False)
    assert chooser.choose([*sequences(1), *sequences(1, 3), *sequences(1, 1)]) == [4, 2, 0]
