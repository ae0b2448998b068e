"""Quantiles of Student's t against its density, integrated."""

import math

import numpy as np
import pytest

from ziphius.evals.student import QUANTILES_975, student_975


@pytest.mark.parametrize("degrees", range(1, 31))
def test_a_quantile_leaves_one_in_forty_above_it(degrees: int) -> None:
    angle = np.linspace(0.0, math.atan(student_975(degrees) / math.sqrt(degrees)), 20_001)
    # With t = sqrt(degrees) tan(angle) the density becomes a power of the cosine.
    density = np.cos(angle) ** (degrees - 1)
    constant = math.gamma((degrees + 1) / 2) / (math.sqrt(math.pi) * math.gamma(degrees / 2))
    assert 0.5 + constant * np.trapezoid(density, angle) == pytest.approx(0.975, abs=3e-5)


def test_many_degrees_take_the_widest_there_is_left() -> None:
    assert student_975(31) == student_975(10_000) == QUANTILES_975[-1] > 1.96
