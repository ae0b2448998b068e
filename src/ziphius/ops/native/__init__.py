"""Fused CPU kernels: compiled once per machine from `*.cpp`, called through ctypes.

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
import sys
from collections.abc import Sequence
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
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # panels of bfloat16 are turned as numbers of four bytes
)
SUFFIXES = {torch.float32: "f", torch.bfloat16: "b"}
SWITCH = "ZIPHIUS_NATIVE"
"""Environment variable: `off` runs the PyTorch twins instead."""

_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_SIGNATURES = {
    "rms_norm": "pppppp" + "ll" + "f",
    "rms_norm_backward": "pppppppp" + "ll",
    "swiglu": "ppplll",
    "swiglu_backward": "ppppplll",
    "combine": "plpppp" + "lll",
    "cross_entropy": "ppppfll",
    "attention_forward": "pppppp" + "llllll" + "if",
    "attention_backward": "pppppppppp" + "llllll" + "if",
    "latent_queries": "pppp" + "lllll" + "i",
    "rotate": "pppp" + "llll" + "ii",
    "latent_keys": "pppp" + "llllll",
    "latent_keys_backward": "pppp" + "llllll",
    "top_experts": "pp" + "llllll",
    "sort_pairs": "ppppll",
    "dense": "ppp" + "lllll",
    "dense_gradient": "ppp" + "lll",
    "experts_forward": "ppppppp" + "llll",
    "experts_backward": "pppppppp" + "pppp" + "llll",
    "int8_linear": "plplpppp" + "ll" + "i",
}
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "rms_norm": ("ff", "fb", "bb"),
    "rms_norm_backward": ("ff", "fb", "bb"),
    "top_experts": ("",),
    "sort_pairs": ("",),
    "dense": ("ff", "bf", "bb"),
    "dense_gradient": ("b",),
    "experts_forward": ("ff", "bf", "bb"),
    "experts_backward": ("ff", "bf", "bb"),
    "int8_linear": ("f",),
}
"""Of kernels that come in other kinds than `_PLAIN`; two letters: two tensors differ in kind."""
_PLAIN = ("f", "b")


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
        kernel: name in a `.cpp` file here.
        dtypes: its suffix, of the letters in `SUFFIXES`; empty where it has one kind only.
        arguments: in the kernel's order; None is a null pointer.
    """
    library = _library()
    assert library is not None
    function = getattr(library, _symbol(kernel, dtypes))
    function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Run an autograd function; where no gradient is wanted, its forward pass alone.

    That costs half as much on the small tensors of decoding, and nothing is kept for a backward
    pass: `needs_input_grad` would otherwise name what requires a gradient, wanted or not.
    """
    if torch.is_grad_enabled():
        return function.apply(*inputs)
    return function.forward(_Untracked(), *inputs)


class _Untracked:
    """Stands for the context of an autograd function that will have no backward pass."""

    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep nothing."""


@cache
def _library() -> ctypes.CDLL | None:
    path, _ = _build()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    for kernel, signature in _SIGNATURES.items():
        for dtypes in _SUFFIXES.get(kernel, _PLAIN):
            function = getattr(library, _symbol(kernel, dtypes))
            function.argtypes = [_TYPES[letter] for letter in signature]
            function.restype = None
    return library


def _symbol(kernel: str, dtypes: str) -> str:
    return f"{kernel}_{dtypes}" if dtypes else kernel


@cache
def _build() -> tuple[Path | None, str]:
    """Return the compiled library, building it if this machine has not yet, and a status line."""
    if os.environ.get(SWITCH) == "off":
        return None, f"off: {SWITCH}=off"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        return None, "off: no C++ compiler found; install g++ to train faster on this CPU"
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    try:
        return _compiled(sources, compiler)
    except (OSError, OutputError) as error:  # a cache folder that cannot be used
        return None, f"off: {error}"


def _compiled(sources: Sequence[Path], compiler: str) -> tuple[Path | None, str]:
    path = cache_folder() / f"native-{_fingerprint(sources, compiler)}.so"
    if not _is_whole(path):
        print("Compiling kernels for this CPU: some 15 seconds, once.", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        built = subprocess.run(
            [compiler, *FLAGS, "-o", str(scratch), *map(str, sources)],
            capture_output=True,
            text=True,
        )
        if built.returncode:
            scratch.unlink(missing_ok=True)
            reason = built.stderr.strip().splitlines()
            return None, f"off: {compiler} failed: {reason[0] if reason else 'no message'}"
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


def _fingerprint(sources: Sequence[Path], compiler: str) -> str:
    """Hash what the compiled code depends on: sources, flags, compiler and the CPU's features."""
    flags = Path("/proc/cpuinfo")
    features = ""
    if flags.exists():
        features = next((line for line in flags.read_text().splitlines() if "flags" in line), "")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout
    headers = sorted(Path(__file__).parent.glob("*.h"))
    texts = (path.read_text() for path in (*sources, *headers))
    parts = (*texts, *FLAGS, compiler, version, platform.machine(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
