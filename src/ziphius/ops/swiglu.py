"""The gated activation silu(gate) * up (SwiGLU, arXiv 2002.05202).

Shapes: X rows of any leading shape, F width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.native import pointwise


def swiglu(gate_XF: Tensor, up_XF: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    if native.serves(gate_XF, up_XF) and gate_XF.dtype == up_XF.dtype:
        out_XF: Tensor = native.apply(_SwiGLU, gate_XF, up_XF)
        return out_XF
    return F.silu(gate_XF) * up_XF


class _SwiGLU(torch.autograd.Function):
    """One pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, gate_XF: Tensor, up_XF: Tensor) -> Tensor:
        gate_XF, up_XF = gate_XF.contiguous(), up_XF.contiguous()
        ctx.save_for_backward(gate_XF, up_XF)
        return pointwise.swiglu(gate_XF, up_XF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XF: Tensor) -> tuple[Tensor, Tensor]:
        gate_XF, up_XF = ctx.saved_tensors
        grad_gate_XF, grad_up_XF = torch.empty_like(gate_XF), torch.empty_like(up_XF)
        grads = (grad_gate_XF, grad_up_XF)
        pointwise.swiglu_backward(grad_XF.contiguous(), gate_XF, up_XF, *grads)
        return grad_gate_XF, grad_up_XF
