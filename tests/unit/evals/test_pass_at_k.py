"""pass@k against drawing every set of k answers."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.evals.errors import EvalError
from ziphius.evals.pass_at_k import pass_at_k


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_it_is_the_share_of_sets_that_hold_a_correct_answer(
    sampled: tuple[int, int], data: st.DataObject
) -> None:
    samples, correct = sampled
    k = data.draw(st.integers(1, samples))
    answers = [True] * correct + [False] * (samples - correct)
    sets = list(combinations(answers, k))
    share = sum(any(chosen) for chosen in sets) / len(sets)
    assert pass_at_k([correct], samples, k) == pytest.approx([share], abs=1e-12)


def test_it_is_unbiased_where_the_short_formula_is_not() -> None:
    chance, samples, k = 0.2, 8, 4
    truth = 1 - (1 - chance) ** k
    correct = np.random.default_rng(0).binomial(samples, chance, size=100_000)
    assert pass_at_k(correct, samples, k).mean() == pytest.approx(truth, abs=0.005)
    assert (1 - (1 - correct / samples) ** k).mean() < truth - 0.02


def test_problems_may_have_different_numbers_of_samples() -> None:
    assert pass_at_k([1, 1, 4], [2, 4, 4], 2) == pytest.approx([1.0, 0.5, 1.0])


def test_large_counts_neither_overflow_nor_cancel() -> None:
    assert pass_at_k([1], 10_000, 10_000) == pytest.approx([1.0])
    assert pass_at_k([1], 10_000, 100) == pytest.approx([0.01])


@pytest.mark.parametrize("k", [0, -1, 3])
def test_k_must_fit_the_samples(k: int) -> None:
    with pytest.raises(EvalError, match=f"pass@{k} needs .* one has 2"):
        pass_at_k([1, 1], [2, 5], k)
