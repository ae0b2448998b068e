"""The gated feed-forward layer down(silu(gate x) * up x), SwiGLU (arXiv 2002.05202).

Shapes: X rows of any leading shape, D hidden, F width of the layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops import native
from ziphius.ops.linear import (
    as_rows,
    linear,
    project,
    project_back,
    trains_small,
    weight_gradient,
)
from ziphius.ops.native import pointwise
from ziphius.ops.precision import compute_dtype
from ziphius.ops.swiglu import swiglu


def feed_forward(x_XD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """Apply the layer with these weights, [X, D]."""
    weights = (gate_FD, up_FD, down_DF)
    if trains_small(x_XD, *weights):  # gate and up are joined, which is a copy of them
        out_XD: Tensor = native.apply(_FeedForward, x_XD, *weights, compute_dtype(x_XD))
        return out_XD
    return linear(swiglu(linear(x_XD, gate_FD), linear(x_XD, up_FD)), down_DF)


class _FeedForward(torch.autograd.Function):
    """Gate and up as one product each way: fewer, larger products, and no sum of two gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x_XD: Tensor,
        gate_FD: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        x = as_rows(x_XD.to(dtype))
        gate_up_X2F = project(x, torch.cat((gate_FD, up_FD)))
        hidden_XF = pointwise.swiglu(*gate_up_X2F.chunk(2, -1))
        ctx.save_for_backward(x, gate_up_X2F, hidden_XF, gate_FD, up_FD, down_DF)
        ctx.input_dtype = x_XD.dtype
        return project(hidden_XF, down_DF).view(x_XD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up_X2F, hidden_XF, gate_FD, up_FD, down_DF = ctx.saved_tensors
        grad = grad_XD.reshape(x.shape)
        grad_x = grad_gate = grad_up = grad_down = None
        grad_gate_up_X2F = torch.empty_like(gate_up_X2F)
        pointwise.swiglu_backward(
            project_back(grad, down_DF),
            *gate_up_X2F.chunk(2, -1),
            *grad_gate_up_X2F.chunk(2, -1),
        )
        if ctx.needs_input_grad[0]:
            grad_x = project_back(grad_gate_up_X2F, torch.cat((gate_FD, up_FD)))
            grad_x = grad_x.view_as(grad_XD).to(ctx.input_dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_gate, grad_up = weight_gradient(grad_gate_up_X2F, x).to(gate_FD.dtype).chunk(2)
        if ctx.needs_input_grad[3]:
            grad_down = weight_gradient(grad, hidden_XF).to(down_DF.dtype)
        return grad_x, grad_gate, grad_up, grad_down, None
