"""`ops/native/units.py`: the units that the compiler was told to use."""

import platform
from pathlib import Path

import pytest

from ziphius.ops import native
from ziphius.ops.native import build
from ziphius.ops.native.units import UNITS, compiled_units


@pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
def test_the_units_are_those_of_the_processor() -> None:
    found = compiled_units()
    assert list(UNITS) == [*dict.fromkeys([*UNITS])]
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert ("AVX2" in found) == ("avx2" in flags)
    assert ("AVX-512" in found) == ("avx512f" in flags)
    assert ("AVX-512 BF16" in found) == ("avx512_bf16" in flags)
    assert "NEON" not in found


def test_without_kernels_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "library", lambda: None)
    assert compiled_units() == []
