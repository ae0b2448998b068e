import json
from pathlib import Path

import pytest
import torch

from ziphius.train import peak
from ziphius.train.peak import matrix_peak, measure_peak

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_that_of_a_machine(dtype: torch.dtype) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    found = measure_peak(CPU, dtype, size=128, seconds=0.0)
    assert 1e7 < found < 1e15
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_flops_are_two_for_each_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_best_time", lambda matrix, seconds: 0.5)
    assert measure_peak(CPU, torch.bfloat16, size=100) == 2 * 100**3 / 0.5


def test_float32_takes_the_faster_library_unless_it_would_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def best_time(matrix: torch.Tensor, seconds: float) -> float:
        return 0.25 if torch.backends.mkldnn.matmul.fp32_precision == "bf16" else 0.5

    monkeypatch.setattr(peak, "_best_time", best_time)
    for flags, time in (("avx2", 0.25), ("avx2 amx_tile amx_bf16", 0.5)):
        monkeypatch.setattr(peak, "_cpu_flags", lambda flags=flags: flags)
        assert measure_peak(CPU, torch.float32, size=10) == 2 * 10**3 / time


def test_the_best_that_was_measured_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([2e9, 1e9, 5e9, 3e9, 1e9])
    monkeypatch.setattr(peak, "measure_peak", lambda device, dtype: next(peaks))
    assert matrix_peak(CPU, torch.float32) == 2e9
    assert matrix_peak(CPU, torch.float32) == 2e9
    assert matrix_peak(CPU, torch.bfloat16) == 5e9
    assert matrix_peak(CPU, torch.float32) == 3e9
    for file in (cache / "peaks").iterdir():
        file.write_text(json.dumps({"flops_per_s": "fast"}))
    assert matrix_peak(CPU, torch.float32) == 1e9


def test_a_cache_that_cannot_be_written_stops_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "peaks").write_text("in the way")
    monkeypatch.setattr(peak, "measure_peak", lambda device, dtype: 1e9)
    assert matrix_peak(CPU, torch.float32) == 1e9
