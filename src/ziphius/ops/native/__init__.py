"""Fused CPU kernels: compiled once per machine from `kernels.cpp`, called through ctypes.

Training on a CPU spends more time between the matrix products than in them; these kernels do in
one pass over memory what PyTorch does in five to ten. Each stands behind a function of `ops/` that
has a plain PyTorch twin, used on other devices and where no C++ compiler is found. `status` says
which of the two runs and why; `ziphius doctor` prints it.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziphius.core.assets import cache_folder
from ziphius.core.errors import OutputError
from ziphius.core.files import write_file

FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
)
SUFFIXES = {torch.float32: "f", torch.bfloat16: "b"}
SWITCH = "ZIPHIUS_NATIVE"
"""Environment variable: `off` runs the PyTorch twins instead."""

_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_SIGNATURES = {
    "rms_norm": "ppppllf",
    "rms_norm_backward": "ppppppll",
    "swiglu": "pplpll",
    "swiglu_backward": "ppplpplll",
    "combine": "plpppl" + "ll",
    "combine_backward": "pplppp" + "plll",
    "cross_entropy": "ppppfll",
    "attention_gradient": "ppppp" + "llll" + "if",
    "latent_queries": "pppp" + "lllll" + "i",
    "latent_keys": "pppp" + "llllll",
    "latent_keys_backward": "pppp" + "llllll",
}


def serves(*tensors: Tensor) -> bool:
    """Tell whether the kernels can take these tensors: on the CPU, float32 or bfloat16."""
    return all(t.device.type == "cpu" and t.dtype in SUFFIXES for t in tensors) and (
        _library() is not None
    )


def status() -> str:
    """Say in a few words whether the kernels run here, and why not if they do not."""
    return _build()[1]


def call(kernel: str, dtypes: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel on contiguous tensors (a strided one passes its row stride along).

    Args:
        kernel: name in `kernels.cpp`.
        dtypes: its suffix, as in `SUFFIXES`.
        arguments: in the kernel's order; None is a null pointer.
    """
    library = _library()
    assert library is not None
    function = getattr(library, f"{kernel}_{dtypes}")
    function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Run an autograd function whose `apply` has no types."""
    return function.apply(*inputs)


@cache
def _library() -> ctypes.CDLL | None:
    path, _ = _build()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    for kernel, signature in _SIGNATURES.items():
        for suffix in ("ff", "fb", "bb") if kernel.startswith("rms_norm") else ("f", "b"):
            function = getattr(library, f"{kernel}_{suffix}")
            function.argtypes = [_TYPES[letter] for letter in signature]
            function.restype = None
    return library


@cache
def _build() -> tuple[Path | None, str]:
    """Return the compiled library, building it if this machine has not yet, and a status line."""
    if os.environ.get(SWITCH) == "off":
        return None, f"off: {SWITCH}=off"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        return None, "off: no C++ compiler found; install g++ to train faster on this CPU"
    source = Path(__file__).with_name("kernels.cpp")
    try:
        return _compiled(source, compiler)
    except (OSError, OutputError) as error:  # a cache folder that cannot be used
        return None, f"off: {error}"


def _compiled(source: Path, compiler: str) -> tuple[Path | None, str]:
    path = cache_folder() / f"native-{_fingerprint(source, compiler)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        built = subprocess.run(
            [compiler, *FLAGS, "-o", str(scratch), str(source)], capture_output=True, text=True
        )
        if built.returncode:
            scratch.unlink(missing_ok=True)
            reason = built.stderr.strip().splitlines()
            return None, f"off: {compiler} failed: {reason[0] if reason else 'no message'}"
        write_file(path, scratch.read_bytes())
        scratch.unlink()
    return path, f"on: compiled by {compiler}"


def _fingerprint(source: Path, compiler: str) -> str:
    """Hash what the compiled code depends on: source, flags, compiler and the CPU's features."""
    flags = Path("/proc/cpuinfo")
    features = ""
    if flags.exists():
        features = next((line for line in flags.read_text().splitlines() if "flags" in line), "")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout
    parts = (source.read_text(), *FLAGS, compiler, version, platform.machine(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
