"""What the machine can do at most, beside every figure: its name, and its measured matrix peaks."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Name the machine and its software."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    features: list[str] = []
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        features = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "features": features,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def median_seconds(run: Callable[[], object], *, warmup: int = 3, rounds: int = 9) -> float:
    """Time a call: the median of `rounds` after `warmup`."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_peaks(device: str = "cpu", size: int = 2_048) -> dict[str, float]:
    """Measure GFLOP/s of a square product in the dtypes that training uses."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()

        peaks[str(dtype).removeprefix("torch.")] = 2 * size**3 / median_seconds(product) / 1e9
    return peaks


def memory_bandwidth(size: int = 1 << 28) -> dict[str, float]:
    """Measure GB/s of reading, and of copying (both ways counted), numbers that fit no cache."""
    a, b = torch.ones(size), torch.empty(size)
    traffic: dict[str, tuple[int, Callable[[], object]]] = {
        "read": (a.nbytes, a.sum),
        "copy": (2 * a.nbytes, lambda: b.copy_(a)),
    }
    return {name: moved / median_seconds(run) / 1e9 for name, (moved, run) in traffic.items()}
