"""What was measured once is not measured again."""

import copy
import json
from pathlib import Path

import pytest

from tests.unit.evals.measurements import measurement
from ziphius.evals.errors import EvalError
from ziphius.evals.keeping import kept_measurement, read_measurement
from ziphius.evals.measure import Measurement

FOUND = measurement({"easy": [1, 2], "hard": [0]}, samples=2)


def never() -> Measurement:
    raise AssertionError("measured again")


def test_a_measurement_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "grpo.json"
    identity = {"model": "abc", "levels": (1, 2)}
    assert kept_measurement(path, identity, lambda: FOUND) == FOUND
    assert kept_measurement(path, identity, never) == FOUND
    assert read_measurement(path).identity == {"model": "abc", "levels": [1, 2]}


def test_another_model_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "grpo.json"
    kept_measurement(path, {"model": "abc"}, lambda: FOUND)
    other = measurement({"easy": [0, 0]}, samples=2)
    assert kept_measurement(path, {"model": "abd"}, lambda: other) == other
    assert kept_measurement(path, {"model": "abd"}, never) == other


def test_a_measurement_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "grpo.json"
    kept_measurement(path, {"model": "abc"}, lambda: FOUND)
    with pytest.raises(AssertionError):
        kept_measurement(path, {"model": "abd"}, never)
    assert kept_measurement(path, {"model": "abc"}, never) == FOUND


def test_a_file_that_lacks_what_is_kept_today_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grpo.json"
    kept_measurement(path, {}, lambda: FOUND)
    whole = json.loads(path.read_bytes())
    for place, name in (("measurement", "arm"), ("problem", "answers"), ("problem", "level")):
        kept = copy.deepcopy(whole)
        measured = kept["measurement"]
        del (measured if place == "measurement" else measured["problems"][0])[name]
        path.write_text(json.dumps(kept))
        with pytest.raises(EvalError, match=rf"no measurement.*{name}.* Remove it"):
            kept_measurement(path, {}, never)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"identity":{},"measurement":{"problems":[],"seconds":"NaN?","arm":"a","mode":"b"}}',
        b'{"identity":{},"measurement":{"problems":[{"slice":"a","task":"b","level":1,"key":"c",'
        b'"answers":["7"],"correct":[true],"tokens":[],"corrections":[0],"truncated":[false]}],'
        b'"seconds":1,"arm":"a","mode":"b"}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "grpo.json"
    path.write_bytes(content)
    with pytest.raises(EvalError, match=r"grpo\.json is no measurement.* Remove it"):
        kept_measurement(path, {}, never)


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="Cannot read"):
        kept_measurement(tmp_path, {}, never)
