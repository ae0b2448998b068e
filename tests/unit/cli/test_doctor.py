import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ziphius.cli import doctor as doctor_module
from ziphius.cli.main import main
from ziphius.core import device
from ziphius.ops import native
from ziphius.ops.native import units


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, tuple[str, str]]]:
    def run() -> dict[str, tuple[str, str]]:
        assert main(["doctor", "--json"]) == 0
        findings = json.loads(capsys.readouterr().out)
        return {f["part"]: (f["found"], f["remedy"]) for f in findings}

    return run


Report = Callable[[], dict[str, tuple[str, str]]]


def test_it_says_what_is_here(report: Report) -> None:
    found = report()
    assert found["torch"] == (torch.__version__, "")
    assert f"{torch.get_num_threads()} torch threads" in found["cpu"][0]
    assert 0.1 < float(found["memory"][0].removesuffix(" GiB")) < 1e5


def test_it_prints_a_table_with_brackets_and_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ['no-x; extra == "quant"'])
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "cache folder" in out
    assert "[quant]" in out


def test_a_missing_asset_names_the_command(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "not" / "there"))
    found = report()
    assert str(tmp_path / "not" / "there") in found["cache folder"][0]
    assert found["asset smollm2-135m-instruct"] == (
        "not fetched",
        "ziphius assets fetch smollm2-135m-instruct",
    )


def test_a_missing_extra_names_the_command(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch", 'pytest; extra == "dev"', 'no-such-x>=2,<3; extra == "quant"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    found = report()
    assert found["[dev]"] == ("pytest", "")
    assert found["[quant]"] == ("lacks no-such-x", "pip install 'ziphius[quant]'")


def test_accelerators_are_listed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "accelerator" in report() or torch.accelerator.is_available()
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu", "mps:0"])
    found = report()
    assert found["mps:0"] == ("present", "")
    assert "accelerator" not in found


def test_it_says_whether_the_native_kernels_run(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "status", lambda: "on: compiled by g++")
    assert report()["native kernels"] == ("on: compiled by g++", "")
    monkeypatch.setattr(native, "status", lambda: "off: no C++ compiler found")
    assert report()["native kernels"] == ("off: no C++ compiler found", "install g++")
    monkeypatch.setenv("ZIPHIUS_NATIVE", "off")
    monkeypatch.setattr(native, "status", lambda: "off: ZIPHIUS_NATIVE=off")
    off = ("off: ZIPHIUS_NATIVE=off", "unset ZIPHIUS_NATIVE to have them")
    assert report()["native kernels"] == off


def test_a_cache_folder_that_cannot_be_looked_at_is_explained(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a folder one may not enter, but for root too: the system refuses to look at the path.
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / ("x" * 300)))
    monkeypatch.setattr(native, "status", lambda: (tmp_path / ("x" * 300)).exists())
    found = report()
    assert found["cache folder"][0].endswith("File name too long")
    assert found["cache folder"][1].startswith("set ZIPHIUS_CACHE")
    assert found["native kernels"][0] == "off: File name too long in the cache folder"
    assert main(["assets"]) == 2
    assert main(["assets", "verify"]) == 2
    assert main(["assets", "fetch", "bible-kjv"]) == 2


def test_a_cache_folder_without_rights_is_explained(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module.os, "access", lambda path, mode: mode != os.W_OK)
    found = report()
    assert found["cache folder"][1].startswith("set ZIPHIUS_CACHE")
    assert "asset bible-kjv" in found  # a cache that can only be read serves what it has
    monkeypatch.setattr(doctor_module.os, "access", lambda path, mode: False)
    assert "no right to read it" in report()["cache folder"][0]


def test_it_says_what_would_run_a_model(report: Report, capsys) -> None:
    assert not any(part.startswith("runner") for part in report())
    assert main(["doctor", "v3-tiny"]) == 0
    assert "runner of v3-tiny" in " ".join(capsys.readouterr().out.split())
    assert doctor_module._runner("v3-tiny").startswith(
        "native program (" if native.status().startswith("on") else "modules of PyTorch, as "
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert doctor_module._runner("v3-tiny").startswith("modules of PyTorch, as autocast")
    assert main(["doctor", "no-such-model"]) == 2


def test_it_says_which_units_the_kernels_use(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "compiled_units", lambda: ["AVX2", "AVX-512"])
    found = report()["native units"][0]
    assert found == "AVX2, AVX-512; not AVX-512 VNNI, AVX-512 BF16, AMX BF16, AMX INT8"
    monkeypatch.setattr(units, "compiled_units", list)
    assert "native units" not in report()
