"""One decoder layer: attention and feed-forward, each behind a norm and beside a residual.

Shapes: B sequences, T new tokens, D hidden_size.
"""

from torch import Tensor, nn

from ziphius.models.attention import ATTENTION
from ziphius.models.config import ModelConfig
from ziphius.models.context import ForwardContext
from ziphius.models.layers import FeedForward, RMSNorm
from ziphius.models.moe import MixtureOfExperts
from ziphius.models.native import native
from ziphius.ops.native.program import Program
from ziphius.ops.native.program_records import Place


class Block(nn.Module):
    """A decoder layer; dense or with experts as `ModelConfig.is_expert_layer` says."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ATTENTION[config.attention](config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: FeedForward | MixtureOfExperts
        if config.is_expert_layer(layer_idx):
            self.mlp = MixtureOfExperts(config, layer_idx)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_BTD: Tensor, context: ForwardContext) -> Tensor:
        """Return the residual stream after this layer."""
        normed_BTD = self.input_layernorm(hidden_BTD)
        hidden_BTD, normed_BTD = self.post_attention_layernorm.add(
            hidden_BTD, self.self_attn(normed_BTD, context.rope, context.attention)
        )
        if isinstance(self.mlp, MixtureOfExperts):
            out_BTD: Tensor = self.mlp(normed_BTD, context)
        else:
            out_BTD = self.mlp(normed_BTD)
        return hidden_BTD + out_BTD

    def emit(self, program: Program, stream: Place, angles: Place) -> None:
        """Have a native program add both parts to the stream."""
        norm = native(self.input_layernorm).emit(program)
        native(self.self_attn).emit(program, norm, stream, angles)
        norm = native(self.post_attention_layernorm).emit(program)
        native(self.mlp).emit(program, norm, stream)
