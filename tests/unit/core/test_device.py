import pytest
import torch

from ziphius.core import device
from ziphius.core.device import available_devices, resolve_device, resolve_dtype
from ziphius.core.errors import DeviceError


def test_the_cpu_is_always_there() -> None:
    assert available_devices()[0] == "cpu"
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("available", "expected"), [(["cpu"], "cpu"), (["cpu", "cuda:0", "cuda:1"], "cuda:0")]
)
def test_auto_takes_the_first_accelerator(
    monkeypatch: pytest.MonkeyPatch, available: list[str], expected: str
) -> None:
    monkeypatch.setattr(device, "available_devices", lambda: available)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_accelerators_go_by_type_or_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "gpu", "", "cpu:1", "meta"])
def test_an_unknown_device_is_named_with_those_there(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    with pytest.raises(DeviceError, match=f"No device {name!r} here.*cpu, cuda:0, cuda:1"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("float16", "cuda", torch.float16),
    ],
)
def test_dtype(name: str, kind: str, expected: torch.dtype) -> None:
    assert resolve_dtype(name, torch.device(kind)) == expected


@pytest.mark.parametrize("has_units", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
def test_auto_takes_bfloat16_on_a_cpu_for_weights_stored_so_where_it_has_units(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, stored: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_units)
    is_fast = has_units and stored == torch.bfloat16
    expected = torch.bfloat16 if is_fast else torch.float32
    assert resolve_dtype("auto", torch.device("cpu"), stored) == expected
    assert resolve_dtype("float32", torch.device("cpu"), stored) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda"), stored) == torch.bfloat16


def test_an_unknown_dtype_is_named_with_the_known_ones() -> None:
    with pytest.raises(DeviceError, match=r"'int8'.*float32, bfloat16, float16"):
        resolve_dtype("int8", torch.device("cpu"))
