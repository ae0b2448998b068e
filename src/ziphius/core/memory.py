"""How the C library treats memory that a training step frees."""

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


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
