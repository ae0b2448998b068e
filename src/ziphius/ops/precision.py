"""Which dtype an operation computes in, and which library multiplies float32 matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return autocast's dtype where autocast is on for the tensor's device, else its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def prefer_onednn_for_float32() -> bool:
    """Let oneDNN multiply float32 matrices on the CPU where it stays exact; tell whether it does.

    PyTorch's default, MKL, takes a slow path on AMD processors: oneDNN is 2.1 times as fast there.
    The only switch that selects it allows bf16 inside, which oneDNN uses on processors with AMX;
    so the switch is tried on a product whose answer is known, and taken back where it rounds.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 256, generator=generator)
    expected = (a.double() @ a.double()).float()
    settings.fp32_precision = "bf16"
    error = ((a @ a) - expected).norm() / expected.norm()
    if error < 1e-5:
        return True
    settings.fp32_precision = before
    return False


@contextmanager
def own_float32_products() -> Iterator[None]:
    """Take back what `prefer_onednn_for_float32` chose, inside the block.

    The products inside fused attention are small, and oneDNN is made for large ones: decoding 512
    sequences took 2.2 times as long through it (two cores of an AMD EPYC).
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "none"
    try:
        yield
    finally:
        settings.fp32_precision = before
