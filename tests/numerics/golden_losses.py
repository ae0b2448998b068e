"""How close a curve must be to the one that was recorded.

Other kernels and machines round in other ways. For some steps that stays in the last digits, and
the bound is tight; then an expert is picked by a last bit, and curves part by about 1e-3.
"""

from collections.abc import Sequence

import pytest

TIGHT_STEPS = 5


def assert_golden(actual: Sequence[float], golden: Sequence[float], name: str = "loss") -> None:
    """Hold the first steps of a curve to 1e-5 of the recorded ones, all to 5e-3."""
    assert len(actual) == len(golden) > TIGHT_STEPS
    assert actual[:TIGHT_STEPS] == pytest.approx(golden[:TIGHT_STEPS], rel=1e-5), name
    assert actual == pytest.approx(golden, rel=5e-3), name
