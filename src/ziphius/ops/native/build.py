"""Compile the kernels once per machine, and load what was compiled."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ziphius.core.assets import cache_folder
from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.files import write_file

SWITCH = "ZIPHIUS_NATIVE"
"""Environment variable: `off` runs the PyTorch twins instead, `sanitize` is for `make sanitize`."""
COMMON_FLAGS = (
    "-march=native",
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # panels of bfloat16 are turned as numbers of four bytes
)
SANITIZERS = "-fsanitize=address,undefined"
MODES: dict[str, tuple[str, ...]] = {
    "on": ("-O3", *COMMON_FLAGS),
    "sanitize": ("-O1", "-g", SANITIZERS, "-fno-sanitize-recover=all", *COMMON_FLAGS),
}
"""What the compiler is told, for each way to compile."""


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernels, None where they do not run."""
    path, _ = outcome()
    return None if path is None else ctypes.CDLL(str(path))


@cache
def outcome() -> tuple[Path | None, str]:
    """Return the compiled library, building it if this machine has not yet, and a status line.

    Raises:
        ConfigError: `SWITCH` is set to something else than it knows, or to the sanitizers in a
            process that began without them.
    """
    mode = os.environ.get(SWITCH, "on")
    if mode == "off":
        return None, f"off: {SWITCH}=off"
    if mode not in MODES:
        raise ConfigError(f"{SWITCH}={mode} is not known. Use one of: off, {', '.join(MODES)}.")
    if mode == "sanitize" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise ConfigError(f"{SWITCH}=sanitize needs a process that ASan began: make sanitize.")
    compiler = find_compiler()
    if compiler is None:
        return None, "off: no C++ compiler found; install g++ to train faster on this CPU"
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    try:
        return compiled(sources, compiler, MODES[mode])
    except (OSError, OutputError) as error:  # a cache folder that cannot be used
        return None, f"off: {error}"


def find_compiler() -> str | None:
    """Return the path of what compiles the kernels: `CXX`, g++ or clang++."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compiled(
    sources: Sequence[Path], compiler: str, flags: Sequence[str]
) -> tuple[Path | None, str]:
    """Return the library of these sources from the cache, where it is put if it is not whole."""
    path = cache_folder() / f"native-{_fingerprint(sources, compiler, flags)}.so"
    if not _is_whole(path):
        print("Compiling kernels for this CPU: some 15 seconds, once.", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        built = subprocess.run(
            [compiler, *flags, "-o", str(scratch), *map(str, sources)],
            capture_output=True,
            text=True,
        )
        if built.returncode:
            scratch.unlink(missing_ok=True)
            lines = built.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "error" in line), lines[0])
            return None, f"off: {compiler} failed: {reason}"
        content = scratch.read_bytes()
        scratch.unlink()
        write_file(path, content)
        write_file(_sum_file(path), hashlib.sha256(content).hexdigest())
    return path, f"on: compiled by {compiler}"


def _is_whole(path: Path) -> bool:
    """Tell whether the library is there as it was written: a cut one would end the process."""
    if not path.exists() or not _sum_file(path).exists():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == _sum_file(path).read_text()


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _fingerprint(sources: Sequence[Path], compiler: str, compiler_flags: Sequence[str]) -> str:
    """Hash what the compiled code depends on: sources, flags, compiler and the CPU's features."""
    flags = Path("/proc/cpuinfo")
    features = ""
    if flags.exists():
        features = next((line for line in flags.read_text().splitlines() if "flags" in line), "")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout
    headers = sorted(Path(__file__).parent.glob("*.h"))
    texts = (path.read_text() for path in (*sources, *headers))
    parts = (*texts, *compiler_flags, compiler, version, platform.machine(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
