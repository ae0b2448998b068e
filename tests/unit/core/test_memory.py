import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from ziphius.core.memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):  # the first blocks find their places
    torch.zeros(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.zeros(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_not_faulted_in_again():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT, mode]))
        for mode in ("keep", "leave")
    }
    assert faults["keep"] < 100
    assert faults["leave"] > 50_000  # 5 x 64 MiB in pages of 4 KiB
