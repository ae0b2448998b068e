"""Multi-token prediction (MTP): DeepSeek-V3 report (arXiv 2412.19437), section 2.2.

Depth k adds one layer that predicts the token k + 1 places ahead, from the hidden state of depth
k - 1 and the embedding of the token k places ahead. Embedding and head are the main model's.

Two points the paper leaves open, settled as the published weights need them: the projection's input
is [embedding, hidden] (the paper writes the other order), and the incoming hidden state is the one
after the final norm (of the trunk, then of each depth).

Shapes: B sequences, T tokens, D hidden_size.
"""

import torch
from torch import Tensor, nn

from ziphius.models.block import Block
from ziphius.models.config import ModelConfig
from ziphius.models.context import ForwardContext
from ziphius.models.layers import Linear, RMSNorm
from ziphius.models.native import native
from ziphius.ops.native.program_builder import Program, Projection
from ziphius.ops.native.program_records import Into, Norm, Place


class SharedHead(nn.Module):
    """The norm before the shared output head; on disk a copy of the head stands beside it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def emit(self, program: Program) -> Norm:
        """Have a native program normalise what goes into the head."""
        norm: Norm = native(self.norm).emit(program)
        return norm


class MtpLayer(Block):
    """One depth: a decoder layer behind the projection that joins embedding and hidden state."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def predict(self, hidden_BTD: Tensor, embedded_BTD: Tensor, context: ForwardContext) -> Tensor:
        """Return this depth's hidden state, ready for the head and for the next depth.

        Args:
            hidden_BTD: normalised hidden states of the depth before (the trunk for the first).
            embedded_BTD: embeddings of the tokens k places ahead of each position.
            context: of the forward pass; positions stay those of `hidden_BTD`, unshifted.
        """
        joined_BTX = torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1)
        out_BTD: Tensor = self.shared_head.norm(self(self.eh_proj(joined_BTX), context))
        return out_BTD

    def emit(self, program: Program, stream: Place, angles: Place) -> None:
        """Have a native program add the decoder layer to the stream."""
        super().emit(program, stream, angles)

    def emit_prediction(
        self, program: Program, embedded: Place, hidden: Place, angles: Place
    ) -> tuple[Norm, Place]:
        """Have a native program predict as `predict` does.

        Args:
            program: to be written.
            embedded: where the embeddings of the tokens k places ahead are.
            hidden: where the normalised hidden states of the depth before are.
            angles: where those of the rotation are.

        Returns:
            The norm before the head, and where the stream is that it is for.
        """
        weight_DX = native(self.eh_proj).emit().weight_OI
        [stream] = program.place("stream", len(weight_DX))
        # The product with both side by side is the sum of two products.
        sides = zip(
            weight_DX.chunk(2, dim=1),
            (self.enorm, self.hnorm),
            (embedded, hidden),
            (Into.STORE, Into.ADD),
            strict=True,
        )
        for weight_DD, norm, source, into in sides:
            layer = Projection(weight_DD)
            program.project([layer], native(norm).emit(program), source, stream, into)
        native(self).emit(program, stream, angles)
        return native(self.shared_head).emit(program), stream
