"""`ziphius doctor`: what this machine has for the work, and how to get what is missing."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ziphius.cli.options import AsJson
from ziphius.core.assets import ASSETS, cache_folder, is_cached
from ziphius.core.config import Config
from ziphius.core.errors import AssetError, OutputError

CACHE_REMEDY = "set ZIPHIUS_CACHE to a folder with room and the right to write"


class DoctorConfig(Config):
    """What `ziphius doctor` needs to know."""

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="MODEL")]] = None
    """Model folder, .gguf file or preset, of which to tell what would run it here."""
    as_json: AsJson = False
    """Print the findings as one JSON document."""


class Finding(NamedTuple):
    """One line of the report; `remedy` is empty when nothing needs doing."""

    part: str
    found: str
    remedy: str = ""


def doctor(config: DoctorConfig) -> None:
    """Report what this machine has, what is missing and how to get it.

    Example:
        ziphius doctor
        ziphius doctor v3-tiny
        ziphius doctor --json
    """
    findings = [*_machine(), *_torch(), *_storage(), *_extras()]
    if config.model is not None:
        findings.append(Finding(f"runner of {config.model}", _runner(config.model)))
    if config.as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
        return
    table = Table()
    for heading in ("part", "found", "to do"):
        table.add_column(heading, overflow="fold")  # paths are there to be copied
    for finding in findings:
        table.add_row(*map(escape, finding))
    Console().print(table)


def _machine() -> list[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return [
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("memory", f"{memory / 2**30:.1f} GiB"),
    ]


def _torch() -> list[Finding]:
    import torch

    from ziphius.core.device import available_devices
    from ziphius.ops import native

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    _, *accelerators = available_devices()
    return [
        Finding("torch", torch.__version__),
        Finding("cpu", f"{cores} cores, {torch.get_num_threads()} torch threads, {capability}"),
        _kernels(native.status),
        *_units(),
        *(Finding(name, _accelerator(name)) for name in accelerators),
        *([] if accelerators else [Finding("accelerator", "none: everything runs on the CPU")]),
    ]


def _kernels(find_status: Callable[[], str]) -> Finding:
    """Tell whether the fused CPU kernels run; without them training is right, but slower."""
    from ziphius.ops.native import SWITCH

    try:
        status = find_status()
    except OSError as error:  # they are compiled into the cache folder
        return Finding("native kernels", f"off: {error.strerror} in the cache folder", CACHE_REMEDY)
    if status.startswith("on"):
        return Finding("native kernels", status)
    if os.environ.get(SWITCH) == "off":
        return Finding("native kernels", status, f"unset {SWITCH} to have them")
    return Finding("native kernels", status, "install g++")


def _units() -> list[Finding]:
    """Tell which units of the CPU the kernels use."""
    from ziphius.ops.native.units import UNITS, compiled_units

    try:
        found = compiled_units()
    except OSError:
        return []  # said of the kernels already
    if not found:
        return []
    lacks = [name for name in UNITS if name not in found and name != "NEON"]
    without = f"; not {', '.join(lacks)}" if lacks and "NEON" not in found else ""
    return [Finding("native units", f"{', '.join(found)}{without}")]


def _runner(name: str) -> str:
    """Load a model and tell what would run it."""
    from ziphius.cli.engine_options import runner_line
    from ziphius.engine.build import build_engine
    from ziphius.engine.config import EngineConfig
    from ziphius.engine.load import load_for_inference

    engine = build_engine(load_for_inference(name).model, EngineConfig(num_blocks=1))
    engine.close()
    return runner_line(engine)


def _accelerator(name: str) -> str:
    import torch

    if not name.startswith("cuda"):
        return "present"
    properties = torch.cuda.get_device_properties(name)
    return f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"


def _storage() -> list[Finding]:
    try:
        folder = cache_folder()
    except OutputError as error:
        return [Finding("cache folder", str(error), CACHE_REMEDY)]
    try:
        present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        return [Finding("cache folder", f"{folder}: {error.strerror}", CACHE_REMEDY)]
    if not os.access(present, os.R_OK | os.X_OK):
        return [Finding("cache folder", f"{present}: no right to read it", CACHE_REMEDY)]
    free = f"{folder}, {shutil.disk_usage(present).free / 2**30:.1f} GiB free"
    return [
        Finding("cache folder", free, "" if os.access(present, os.W_OK) else CACHE_REMEDY),
        *map(_asset, ASSETS),
    ]


def _asset(name: str) -> Finding:
    try:
        found = is_cached(name)
    except AssetError as error:
        return Finding(f"asset {name}", "cannot be read", str(error))
    if found:
        return Finding(f"asset {name}", "fetched")
    return Finding(f"asset {name}", "not fetched", f"ziphius assets fetch {name}")


def _extras() -> list[Finding]:
    """Read from the installed package's own metadata which extras are there."""
    try:
        requirements = importlib.metadata.requires("ziphius") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("ziphius", "not installed, runs from its source", "make run")]
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        # Such as: gguf; extra == "quant"
        if match := re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement):
            extras.setdefault(match[2], []).append(match[1])
    return [_extra(name, packages) for name, packages in extras.items() if name != "all"]


def _extra(name: str, packages: list[str]) -> Finding:
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        return Finding(f"[{name}]", f"lacks {', '.join(missing)}", f"pip install 'ziphius[{name}]'")
    return Finding(f"[{name}]", ", ".join(packages))


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
