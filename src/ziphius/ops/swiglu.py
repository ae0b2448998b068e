"""The gated activation silu(gate) * up (SwiGLU, arXiv 2002.05202).

Shapes: X rows of any leading shape, F width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native


def swiglu(gate_XF: Tensor, up_XF: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    if native.serves(gate_XF, up_XF):
        out_XF: Tensor = native.apply(_SwiGLU, gate_XF, up_XF)
        return out_XF
    return F.silu(gate_XF) * up_XF


class _SwiGLU(torch.autograd.Function):
    """One pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, gate_XF: Tensor, up_XF: Tensor) -> Tensor:
        gate_XF, up_XF = gate_XF.contiguous(), up_XF.contiguous()
        ctx.save_for_backward(gate_XF, up_XF)
        return swiglu_forward(gate_XF, up_XF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XF: Tensor) -> tuple[Tensor, Tensor]:
        gate_XF, up_XF = ctx.saved_tensors
        grad_gate_XF, grad_up_XF = torch.empty_like(gate_XF), torch.empty_like(up_XF)
        swiglu_backward(grad_XF.contiguous(), gate_XF, up_XF, grad_gate_XF, grad_up_XF)
        return grad_gate_XF, grad_up_XF


def swiglu_forward(gate_XF: Tensor, up_XF: Tensor) -> Tensor:
    """Run the kernel; gate and up may be the halves of one tensor's rows."""
    out_XF = torch.empty(gate_XF.shape, dtype=gate_XF.dtype)
    suffix = native.SUFFIXES[gate_XF.dtype]
    native.call("swiglu", suffix, gate_XF, up_XF, out_XF, *_layout(gate_XF))
    return out_XF


def swiglu_backward(
    grad_XF: Tensor, gate_XF: Tensor, up_XF: Tensor, grad_gate_XF: Tensor, grad_up_XF: Tensor
) -> None:
    """Run the kernel that fills the last two, which lie in memory as gate and up do."""
    inputs, grads = (grad_XF, gate_XF, up_XF), (grad_gate_XF, grad_up_XF)
    suffix = native.SUFFIXES[gate_XF.dtype]
    native.call("swiglu_backward", suffix, *inputs, *grads, *_layout(gate_XF))


def _layout(x_XF: Tensor) -> tuple[int, int, int]:
    """Return the number of rows, their width, and how far apart they lie."""
    width = x_XF.shape[-1]
    return x_XF.numel() // width, width, width if x_XF.is_contiguous() else x_XF.stride(-2)
