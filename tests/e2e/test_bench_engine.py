"""The engine benchmark runs from end to end, at tiny sizes and with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "engine.py"
ARMS = ("ziphius fp32", "transformers fp32 eager")


@pytest.mark.slow
def test_arms_take_turns(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--quick", "--rounds", "2", "--models", "bench-v3"]
    command += ["--preset", "v3-tiny", "--arms", *ARMS, "--out", str(tmp_path / "out.json")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    model = found["models"]["bench-v3"]
    assert set(model["arms"]) == set(ARMS)
    assert all(arm["died_in"] is None for arm in model["arms"].values())
    assert model["same_tokens"] == {ARMS[1]: {"first": 1.0, "all": 1.0}}
    cells = model["cells"]
    assert cells["decode 3"][ARMS[0]]["rounds"] == 2
    assert set(cells["staggered"]) == {ARMS[0]}, "a static batch takes nobody in"
    assert cells["soak"][ARMS[0]]["num_requests_running_grown"] == 0
    assert model["ratios"]["decode 1"]["best over transformers"] > 0
    assert "decode 3 tok/s" in result.stdout
