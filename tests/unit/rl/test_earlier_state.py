"""A checkpoint that an earlier version wrote between two steps on the same completions."""

import pytest

from tests.unit.rl.toys import model_of, stage
from ziphius.train.errors import TrainingError


def test_completions_that_an_earlier_version_kept_are_refused_in_words() -> None:
    found = stage(model_of("v3-tiny"))
    with pytest.raises(TrainingError, match="as an earlier version kept them"):
        found.restore({"held": {"number": 0}, "steps_done": 1})
