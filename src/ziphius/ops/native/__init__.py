"""Fused CPU kernels: compiled once per machine from `*.cpp`, called through ctypes.

Training on a CPU spends more time between the matrix products than in them; these kernels do in
one pass over memory what PyTorch does in five to ten. Each stands behind a function of `ops/` that
has a plain PyTorch twin, used on other devices and where no C++ compiler is found. `status` says
which of the two runs and why; `ziphius doctor` prints it.

Every `.cpp` has a module of its name, with one function for each kernel of it: tensors in, tensors
out, and a `ValueError` for those that the kernel cannot read. Nothing else calls a kernel.

Why not TORCH_LIBRARY: with PyTorch's headers one file compiles as long as all kernels do without
them (6.1 s and 7.7 s of CPU time), and what is compiled then belongs to one build of PyTorch.
"""

from typing import Any

import torch
from torch import Tensor

from ziphius.ops.native import build
from ziphius.ops.native.build import SWITCH

__all__ = ["SWITCH", "apply", "serves", "status"]


def serves(*tensors: Tensor) -> bool:
    """Tell whether the kernels can take these tensors: on the CPU, float32 or bfloat16."""
    return all(t.is_cpu and t.dtype in (torch.float32, torch.bfloat16) for t in tensors) and (
        build.library() is not None
    )


def status() -> str:
    """Say in a few words whether the kernels run here, and why not if they do not."""
    return build.outcome()[1]


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
