"""`rl/headroom.py`: who is refused, and what the message shows."""

import pytest

from tests.unit.rl.test_rollout_batch import BAD, GOOD
from ziphius.core.errors import ConfigError
from ziphius.rl.headroom import Headroom, NoHeadroomError, measure_headroom, refuse_without_headroom


def test_figures_by_hand() -> None:
    headroom = measure_headroom([[GOOD, GOOD, BAD, BAD], [BAD] * 4, [GOOD, BAD, BAD, BAD]])
    assert headroom == Headroom(pass_1=0.25, pass_k=2 / 3, samples=4, problems=3)
    assert str(headroom) == "pass@1 is 25.0 % and pass@4 is 66.7 % on 3 problems"


@pytest.mark.parametrize(
    ("pass_1", "pass_k", "words"),
    [
        (0.96, 1.0, "Nothing is left to learn here: pass@1 is 96.0 % and pass@16 is 100.0 %"),
        (0.0, 0.0, "Nothing can be made more likely: pass@1 is 0.0 % and pass@16 is 0.0 %"),
        (0.5, 0.505, "almost all answers to a problem are right, or all are wrong"),
    ],
)
def test_a_model_without_room_is_refused(pass_1: float, pass_k: float, words: str) -> None:
    with pytest.raises(NoHeadroomError) as error:
        refuse_without_headroom(Headroom(pass_1, pass_k, 16, 100))
    assert words in str(error.value)
    assert isinstance(error.value, ConfigError)


@pytest.mark.parametrize(("pass_1", "pass_k"), [(0.95, 1.0), (0.5, 0.6), (0.01, 0.1)])
def test_a_model_with_room_is_not(pass_1: float, pass_k: float) -> None:
    refuse_without_headroom(Headroom(pass_1, pass_k, 16, 100))
