"""How much memory is left, and how the system gives and takes it."""

import ctypes
import math
import mmap
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ziphius.core.errors import DeviceError

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_LINE_BYTES = 64
"""Of a CPU's caches: where tensors of PyTorch begin too."""
_HUGE_PAGE = 2**21


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


def refuse_too_large(
    what: str, needed: int, device: torch.device, smaller: Mapping[str, int] | None = None
) -> None:
    """Refuse what does not fit into free memory, before any of it is taken.

    Args:
        what: is done with which model, to begin the error with: "To load x as float32".
        needed: bytes that it takes at least.
        device: where.
        smaller: bytes of what may be done instead, by the words that say how; the error names those
            that fit.

    Raises:
        DeviceError: it does not fit.
    """
    free = free_bytes(device)
    if free is None or needed <= free:
        return
    others = [f"{how} ({_gigabytes(size)})" for how, size in (smaller or {}).items()]
    fitting = [
        text for text, size in zip(others, (smaller or {}).values(), strict=True) if size <= free
    ]
    advice = "Take a smaller model; ziphius inspect tells what each takes."
    if fitting:
        advice = f"What fits: {'; '.join(fitting)}."
    elif others:
        advice = f"Nor would these fit: {'; '.join(others)}. {advice}"
    raise DeviceError(
        f"{what} takes {_gigabytes(needed)}, and {_gigabytes(free)} are free on {device}. {advice}"
    )


def zeros_on_demand(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a tensor of zeros; on a CPU its pages are taken when they are first written to.

    `torch.zeros` writes all of them: a cache for many long sequences took gigabytes and half a
    second before it held a token.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % _LINE_BYTES
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(tuple(shape))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


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


def huge_pages(size: int) -> Tensor:
    """Return memory for what is read over and over, uint8 [size], unfilled.

    Linux is asked to map it in pages of 2 MiB. With those of 4 KiB a decode step that streams 40 MB
    of weights looks up 10,000 of them, which in a virtual machine takes a fifth of the step.
    """
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=flags)
    with suppress(OSError):  # a kernel built without them: it is a wish
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE_PAGE
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
