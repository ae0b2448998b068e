"""The figures that tests note are the largest, and within their bounds or not."""

import math

import pytest

from tests import figures
from tests.figures import seen, take_figures


@pytest.fixture(autouse=True)
def _none_left() -> None:
    take_figures()


def test_the_largest_is_kept_and_held_to_its_bound() -> None:
    assert seen("a", 0.5, 1.0)
    assert seen("a", 0.25, 1.0)
    assert not seen("b", 1.5, 1.0)
    assert take_figures() == {"a": (0.5, 1.0), "b": (1.5, 1.0)}
    assert figures.take_figures() == {}


@pytest.mark.parametrize("order", [(math.nan, 0.5), (0.5, math.nan)])
def test_nan_is_within_no_bound(order: tuple[float, float]) -> None:
    assert [seen("a", value, 1.0) for value in order] == [value == 0.5 for value in order]
    take_figures()
