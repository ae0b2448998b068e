"""What a training run takes at most, beside what `ziphius inspect` says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "memory.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_a_run_takes_what_inspect_says() -> None:
    command = [sys.executable, str(BENCH), "--arm", "v3-1m", "bfloat16", "--steps", "2"]
    # A fresh process: what another test has used would count.
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert 0.7 < figures["ratio"] < 1.3, figures
