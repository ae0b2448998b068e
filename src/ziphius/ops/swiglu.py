"""The gated activation silu(gate) * up (SwiGLU, arXiv 2002.05202).

Shapes: X rows of any leading shape, F width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops import native


def swiglu(gate_XF: Tensor, up_XF: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    if native.serves(gate_XF, up_XF):
        out_XF: Tensor = native.apply(_SwiGLU, gate_XF, up_XF)
        return out_XF
    return F.silu(gate_XF) * up_XF


def swiglu_forward(gate_up_J2F: Tensor, out_JF: Tensor) -> None:
    """Fill `out_JF` from gate and up columns side by side; native kernels only."""
    rows, width = out_JF.shape
    native.call(
        "swiglu",
        native.SUFFIXES[out_JF.dtype],
        gate_up_J2F,
        gate_up_J2F[:, width:],
        2 * width,
        out_JF,
        rows,
        width,
    )


def swiglu_backward(grad_JF: Tensor, gate_up_J2F: Tensor, grad_gate_up_J2F: Tensor) -> None:
    """Fill the gradient of gate and up columns side by side; native kernels only."""
    rows, width = grad_JF.shape
    native.call(
        "swiglu_backward",
        native.SUFFIXES[grad_JF.dtype],
        grad_JF,
        gate_up_J2F,
        gate_up_J2F[:, width:],
        2 * width,
        grad_gate_up_J2F,
        grad_gate_up_J2F[:, width:],
        2 * width,
        rows,
        width,
    )


class _SwiGLU(torch.autograd.Function):
    """One pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, gate_XF: Tensor, up_XF: Tensor) -> Tensor:
        gate_XF, up_XF = gate_XF.contiguous(), up_XF.contiguous()
        out_XF = torch.empty_like(gate_XF)
        width = gate_XF.shape[-1]
        rows = gate_XF.numel() // width
        ctx.suffix = native.SUFFIXES[gate_XF.dtype]
        native.call("swiglu", ctx.suffix, gate_XF, up_XF, width, out_XF, rows, width)
        ctx.save_for_backward(gate_XF, up_XF)
        return out_XF

    @staticmethod
    def backward(ctx: Any, grad_XF: Tensor) -> tuple[Tensor, Tensor]:
        gate_XF, up_XF = ctx.saved_tensors
        grad_gate_XF, grad_up_XF = torch.empty_like(gate_XF), torch.empty_like(up_XF)
        width = gate_XF.shape[-1]
        native.call(
            "swiglu_backward",
            ctx.suffix,
            grad_XF.contiguous(),
            gate_XF,
            up_XF,
            width,
            grad_gate_XF,
            grad_up_XF,
            width,
            gate_XF.numel() // width,
            width,
        )
        return grad_gate_XF, grad_up_XF
