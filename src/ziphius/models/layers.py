"""The small layers every block is made of: projection, norm, gated feed-forward.

Weights are left unfilled when built; `Model.initialize` or a checkpoint fills them, so nothing is
drawn at random only to be overwritten.

Shapes: D hidden_size, F width of the feed-forward layer.
"""

import torch
from torch import Tensor, nn

from ziphius.models.int8 import Int8Linear
from ziphius.models.native import native
from ziphius.ops.feed_forward import feed_forward
from ziphius.ops.linear import linear
from ziphius.ops.native.program_builder import Program, Projection
from ziphius.ops.native.program_records import Gated, Into, Norm, Place
from ziphius.ops.rms_norm import add_rms_norm, rms_norm
from ziphius.ops.swiglu import swiglu


class Linear(nn.Linear):
    """A projection without bias by default, and without an initial draw."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Leave the weights unfilled."""

    def forward(self, x_I: Tensor) -> Tensor:
        """Project the last dimension."""
        return linear(x_I, self.weight, self.bias)

    def emit(self) -> Projection:
        """Say what a native program multiplies by."""
        return Projection(self.weight, self.bias)

    def to_int8(self) -> Int8Linear:
        """Make the layer that takes this one's place in an INT8 model."""
        return Int8Linear(self)


class Embedding(nn.Embedding):
    """A token embedding without an initial draw."""

    def reset_parameters(self) -> None:
        """Leave the weights unfilled."""

    def emit(self) -> Tensor:
        """Say where a native program looks tokens up, [W, D]."""
        return self.weight


class RMSNorm(nn.Module):
    """Divide by the root mean square, in float32, then scale (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x_D: Tensor) -> Tensor:
        """Normalise the last dimension; the result has the input's dtype."""
        return rms_norm(x_D, self.weight, self.eps)

    def add(self, stream_D: Tensor, update_D: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual stream after an update, and that normalised."""
        return add_rms_norm(stream_D, update_D, self.weight, self.eps)

    def emit(self, program: Program) -> Norm:
        """Have a native program normalise what goes into a product."""
        return Norm(program.vector(self.weight), self.eps)


class FeedForward(nn.Module):
    """The gated feed-forward layer down(silu(gate x) * up x): SwiGLU (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x_D: Tensor) -> Tensor:
        """Apply the layer to the last dimension."""
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        if all(type(layer) is Linear for layer in layers):  # none adapted, none quantized
            return feed_forward(x_D, *(layer.weight for layer in layers))
        out_D: Tensor = self.down_proj(swiglu(self.gate_proj(x_D), self.up_proj(x_D)))
        return out_D

    def emit(self, program: Program, norm: Norm, stream: Place) -> None:
        """Have a native program add the layer of the normalised stream to the stream."""
        gate_FD, up_FD, down_DF = self.weights()
        width, hidden = gate_FD.shape
        [inner] = program.place("inner", width)
        first = program.weight_pairs([(gate_FD, up_FD)])
        updates = program.gate_updates(gate_FD, up_FD, norm, stream)
        program.add(Gated(norm, stream, hidden, first, width, inner, updates))
        program.project([Projection(down_DF)], Norm(), inner, stream, Into.ADD)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of gate, up and down projection for a native program."""
        gate, up, down = (
            native(layer).emit() for layer in (self.gate_proj, self.up_proj, self.down_proj)
        )
        assert gate.bias_O is None
        return gate.weight_OI, up.weight_OI, down.weight_OI
