"""Compile the kernels once per machine, and load what was compiled."""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

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
_PREFIX = "native-"


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


def digest() -> str:
    """Name what the kernels that run here were made of; empty where none run.

    Sources, compiler, its flags and the units of the CPU: kernels of equal digests give equal bits.
    """
    path, _ = outcome()
    return "" if path is None else path.stem.removeprefix(_PREFIX)


def find_compiler() -> str | None:
    """Return the path of what compiles the kernels: `CXX`, g++ or clang++."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compiled(
    sources: Sequence[Path], compiler: str, flags: Sequence[str]
) -> tuple[Path | None, str]:
    """Return the library of these sources from the cache, where it is put if it is not whole.

    Of several processes that need it at once one compiles, and the others wait.
    """
    path = cache_folder() / f"{_PREFIX}{_fingerprint(sources, compiler, flags)}.so"
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            reason = None if _is_whole(path) else _build(sources, compiler, flags, path)
        if reason is not None:
            return None, f"off: {compiler} failed: {reason}"
    return path, f"on: compiled by {compiler}"


def _build(sources: Sequence[Path], compiler: str, flags: Sequence[str], path: Path) -> str | None:
    """Compile each source for itself, as many at a time as there are cores, and link them.

    The library comes to its place whole or not at all, and its checksum after it.

    Returns:
        Why it failed, or None.
    """
    print("Compiling kernels for this CPU: some 15 seconds, once.", file=sys.stderr)
    # Those with the most headers take the longest: they go first, so that none is left alone.
    order = sorted(sources, key=lambda source: -source.read_text().count('#include "'))
    with TemporaryDirectory(prefix="ziphius-") as folder, ThreadPoolExecutor(_cores()) as pool:
        objects = [Path(folder) / f"{source.stem}.o" for source in order]
        pairs = zip(order, objects, strict=True)
        runs = [[compiler, *flags, "-c", str(own), "-o", str(target)] for own, target in pairs]
        failed = [reason for reason in pool.map(_refusal, runs) if reason is not None]
        linked = Path(folder) / "kernels.so"
        words = [compiler, *flags, "-shared", *map(str, objects), "-o", str(linked)]
        reason = failed[0] if failed else _refusal(words)
        if reason is None:
            content = linked.read_bytes()
            write_file(path, content)
            write_file(_sum_file(path), hashlib.sha256(content).hexdigest())
    return reason


def _refusal(words: Sequence[str]) -> str | None:
    """Run the compiler; if it fails, return the line that says why."""
    built = subprocess.run(words, capture_output=True, text=True)
    if not built.returncode:
        return None
    lines = built.stderr.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _alone(lock_file: Path) -> Iterator[None]:
    """Wait until no other process is in this block; the lock ends with the process."""
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
        named = ("flags", "Features")  # on x86, on Arm
        lines = flags.read_text().splitlines()
        features = next((line for line in lines if line.startswith(named)), "")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout
    headers = sorted(Path(__file__).parent.glob("*.h"))
    texts = (path.read_text() for path in (*sources, *headers))
    parts = (*texts, *compiler_flags, compiler, version, platform.machine(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
