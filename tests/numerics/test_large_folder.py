"""A bfloat16 folder in use: what it takes beside what `ziphius inspect` says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ziphius.core.device import multiplies_bfloat16

BENCH = Path(__file__).parents[2] / "bench" / "large_folder.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
@pytest.mark.skipif(not multiplies_bfloat16(), reason="minutes on a CPU without bfloat16 units")
def test_a_bfloat16_folder_is_used_without_a_float32_copy(tmp_path: Path) -> None:
    """Two layers of 1.5B's width; `bench/large_folder.py` without --small has all 28."""
    command = [sys.executable, str(BENCH), "--small", "--dtype", "bfloat16"]
    command += ["--out", str(tmp_path / "out.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    arms = json.loads((tmp_path / "out.json").read_text())["arms"]
    assert set(arms) == {"load", "generate", "lora"}
    numbers = arms["load"]["numbers"]
    for arm, figures in arms.items():
        assert figures["dtype"] == "bfloat16", arm
        # A process holds 50 MiB of libraries more than it did after its imports, which counts in
        # so small a model: 1.2 for loading, 1.0 for training.
        assert 0.9 < figures["ratio"] < 1.4, (arm, figures)
    # A float32 copy would be twice the model, which is 2 bytes a number; a program has a copy too.
    assert arms["load"]["peak"] < 3 * numbers, arms["load"]
    assert arms["generate"]["peak"] < 5 * numbers, arms["generate"]
    assert arms["load"]["float32_numbers"] == arms["generate"]["float32_numbers"] == 0
    adapters = arms["lora"]["numbers"] - numbers
    assert arms["lora"]["float32_numbers"] == adapters < 0.02 * numbers
    assert arms["lora"]["checkpoints"] < 2 * numbers
