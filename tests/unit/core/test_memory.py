import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ziphius.core import memory
from ziphius.core.errors import DeviceError
from ziphius.core.memory import huge_pages, refuse_too_large, zeros_on_demand

CPU = torch.device("cpu")

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


def flags_of(address: int) -> list[str]:
    """Return what the system was told of the mapping around an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("not mapped")


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.skipif(not HUGE_PAGES.is_dir(), reason="this system has no huge pages")
def test_memory_that_is_read_over_and_over_is_asked_for_in_huge_pages():
    x = huge_pages(10 * 2**20 + 5)
    assert "hg" in flags_of(x.data_ptr())
    assert "hg" not in flags_of(torch.empty(10 * 2**20).data_ptr())
    assert x.data_ptr() % 2**21 == 0
    assert x.shape == (10 * 2**20 + 5,)
    x.fill_(7)
    assert int(x.sum(dtype=torch.int64)) == 7 * len(x)
    assert huge_pages(100).shape == (100,)


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5 * 10**9)
    refuse_too_large("To load it", 5 * 10**9, CPU)
    ways = {"dtype bfloat16": 6 * 10**9, "as INT8": 4 * 10**9}
    with pytest.raises(DeviceError) as error:
        refuse_too_large("To load it", 12 * 10**9, CPU, ways)
    assert str(error.value) == (
        "To load it takes 12.0 GB, and 5.0 GB are free on cpu. What fits: as INT8 (4.0 GB)."
    )
    with pytest.raises(
        DeviceError, match=r"Nor would these fit: dtype bfloat16 \(6\.0 GB\)\. Take"
    ):
        refuse_too_large("To load it", 12 * 10**9, CPU, {"dtype bfloat16": 6 * 10**9})
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    refuse_too_large("To load it", 10**15, CPU)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="pages are counted on Linux")
def test_zeros_on_demand_take_no_pages_before_they_are_written():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    zeros = zeros_on_demand((3, 2**26), torch.bfloat16)
    assert resident() - before < 2**24
    assert zeros.shape == (3, 2**26)
    assert zeros.dtype is torch.bfloat16
    assert zeros.data_ptr() % 64 == 0
    assert not zeros[1, ::4096].any()
    zeros[2] = 1
    assert resident() - before > 2**26


def test_zeros_on_demand_may_be_none_at_all():
    assert zeros_on_demand((0, 5), torch.float32).shape == (0, 5)
