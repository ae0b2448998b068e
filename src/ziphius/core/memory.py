"""How much memory is left, and how the C library treats what a training step frees."""

import ctypes
import platform
from pathlib import Path

import torch

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be taken on a device, None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    [line] = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")]
    available = int(line.split()[1]) * 1024
    # Of a container's memory, files it has read count as used though they give way: take the limit.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text))
    return available


def keep_freed_memory() -> bool:
    """Ask glibc to keep large freed blocks for the next step; tell whether it will.

    By default it maps every large tensor anew and hands it back when freed, so that each step
    faults in the same thousands of pages: about a tenth of a training step on a CPU. The price is
    that up to 1 GiB once used stays with the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    )
