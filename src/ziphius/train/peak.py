"""The matrix peak of this machine, measured: what a run's FLOPs per second are held against.

Large square products in the numbers of the run, best of several within about half a second; the
best of all runs is kept in the cache folder. A published peak would flatter nobody's CPU: clocks
sink, cores are shared, and libraries miss the fast instructions.

On CPUs float32 is measured through both libraries that torch may use, MKL and oneDNN, and the
faster counts; where a CPU has AMX, oneDNN's switch would compute in bfloat16 and is left alone.
"""

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ziphius.core.assets import cache_folder
from ziphius.core.errors import OutputError
from ziphius.core.files import write_file

CPU_SIZE, ACCELERATOR_SIZE = 1_024, 8_192
SECONDS = 0.25
LEAST_PRODUCTS = 3


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of matrix products here: the best that was ever measured.

    It is measured at every call, about half a second: a peak taken while something else was running
    would make every later run look better than it is.
    """
    path = _cache_file(device, dtype)
    known = _read(path) if path.is_file() else None
    found = max(measure_peak(device, dtype), known or 0.0)
    if found == known:
        return found
    content = json.dumps({"flops_per_s": found, "of": _description(device, dtype)}) + "\n"
    # A cache that cannot be written costs half a second each time, and no run.
    with suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    return found


def measure_peak(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, seconds: float = SECONDS
) -> float:
    """Multiply square matrices for a while and return the FLOPs per second of the fastest product.

    Args:
        device: where.
        dtype: of the numbers.
        size: rows of the matrices.
        seconds: how long each way of computing is tried.
    """
    size = size or (CPU_SIZE if device.type == "cpu" else ACCELERATOR_SIZE)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator).to(device, dtype)
    best = _best_time(matrix, seconds)
    if device.type == "cpu" and dtype == torch.float32 and "amx" not in _cpu_flags():
        with _through_onednn():
            best = min(best, _best_time(matrix, seconds))
    return 2.0 * size**3 / best


@torch.no_grad()
def _best_time(matrix: torch.Tensor, seconds: float) -> float:
    out = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=out)  # the first one compiles kernels and takes memory
    _wait(matrix.device)
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < LEAST_PRODUCTS or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        _wait(matrix.device)
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _through_onednn() -> Iterator[None]:
    """Let oneDNN do float32 products for the length of a block."""
    switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def _read(path: Path) -> float | None:
    """Read a peak that was measured before; None from a file that says nothing of the kind."""
    try:
        match json.loads(path.read_bytes()):
            case {"flops_per_s": float() as peak} if peak > 0:
                return peak
    except ValueError:
        return None
    return None


def _cache_file(device: torch.device, dtype: torch.dtype) -> Path:
    name = hashlib.sha256(json.dumps(_description(device, dtype)).encode()).hexdigest()[:20]
    return cache_folder() / "peaks" / f"{name}.json"


def _description(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Name what the peak depends on."""
    if device.type == "cpu":
        machine = [_cpu_model(), f"{torch.get_num_threads()} threads"]
    else:
        machine = [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]
    return [*machine, str(dtype), torch.__version__, platform.node()]


def _cpu_model() -> str:
    return _cpu_lines().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> str:
    return _cpu_lines().get("flags", "")


def _cpu_lines() -> dict[str, str]:
    """Read what Linux says about the first core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first, _, _ = path.read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
