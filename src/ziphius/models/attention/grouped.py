"""Grouped-query attention (arXiv 2305.13245) of the Llama and Qwen bases; MHA and MQA are its ends.

Shapes: B sequences, T new tokens, S all tokens, D hidden_size, N query heads, G key-value heads,
H head_dim.
"""

from torch import Tensor, nn

from ziphius.models.attention.backend import AttentionGroup, AttentionMetadata
from ziphius.models.attention_spec import attention_spec
from ziphius.models.cache import row_layouts
from ziphius.models.config import ModelConfig
from ziphius.models.layers import Linear, RMSNorm
from ziphius.models.native import native
from ziphius.models.rope import Rope
from ziphius.ops.attention import attend
from ziphius.ops.native.program_builder import Program
from ziphius.ops.native.program_records import (
    NONE,
    NOWHERE,
    Attend,
    GroupedHeads,
    Into,
    Norm,
    Place,
    padded,
)
from ziphius.ops.rotary import rotate_halves


class GroupedAttention(nn.Module):
    """Attention in which N / G query heads share one key and value head.

    Llama has no biases, Qwen2 has them on queries, keys and values, Qwen3 normalises each query and
    key head instead.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim
        self.layer_idx = layer_idx
        self.spec = attention_spec(config, layer_idx)
        self.head_dim = config.head_dim
        self.scale = config.softmax_scale

        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        qkv_bias = config.qkv_bias or config.attention_bias
        self.q_proj = Linear(config.hidden_size, query_width, bias=qkv_bias)
        self.k_proj = Linear(config.hidden_size, key_width, bias=qkv_bias)
        self.v_proj = Linear(config.hidden_size, key_width, bias=qkv_bias)
        self.o_proj = Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.has_qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, rope: Rope, metadata: AttentionMetadata) -> Tensor:
        """Attend from the T new tokens to all S tokens of each sequence.

        Args:
            x_BTD: normalised hidden states of the new tokens.
            rope: their rotation.
            metadata: what they see; its cache, if any, receives the new keys and values.

        Returns:
            Hidden states [B, T, D], before the residual is added.
        """
        query_BTNH = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        key_BTGH = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        value_BTX = self.v_proj(x_BTD)
        if self.has_qk_norm:
            query_BTNH, key_BTGH = self.q_norm(query_BTNH), self.k_norm(key_BTGH)
        query_BTNH = rotate_halves(query_BTNH, rope.cos_BTr, rope.sin_BTr)
        key_BTX = rotate_halves(key_BTGH, rope.cos_BTr, rope.sin_BTr).flatten(-2)
        rows = (key_BTX, value_BTX)
        out_BTX = metadata.attend(self.layer_idx, query_BTNH.transpose(1, 2), rows, self.grouped)
        out_BTD: Tensor = self.o_proj(out_BTX)
        return out_BTD

    def grouped(
        self, query_BNTH: Tensor, rows: tuple[Tensor, ...], group: AttentionGroup
    ) -> Tensor:
        """Attend to given keys and values, [B, T, N H]."""
        key_BSX, value_BSX = rows
        out_BNTH = attend(
            query_BNTH,
            self._heads(key_BSX),
            self._heads(value_BSX),
            mask_BTS=group.mask_ZTS,
            is_causal=group.is_causal,
            scale=self.scale,
        )
        return out_BNTH.transpose(1, 2).flatten(-2)

    def emit(self, program: Program, norm: Norm, stream: Place, angles: Place) -> None:
        """Have a native program add attention of the normalised stream to the stream."""
        layers = [native(layer).emit() for layer in (self.q_proj, self.k_proj, self.v_proj)]
        query_width, key_width, _ = (len(layer.weight_OI) for layer in layers)
        query, key, value = program.project(layers, norm, stream, "projected")
        query_norm = key_norm = Norm()
        if self.has_qk_norm:
            query_norm, key_norm = (
                native(layer).emit(program) for layer in (self.q_norm, self.k_norm)
            )
        width = self.head_dim
        heads, key_heads = query_width // width, key_width // width
        [queries] = program.place("queries", heads * padded(width))
        [attended] = program.place("attended", query_width)
        program.cache_layouts[self.layer_idx] = row_layouts(self.spec.cache)
        sizes = (heads, key_heads, width)
        program.add(
            GroupedHeads(
                self.layer_idx, query, key, value, query_norm, key_norm, angles, *sizes, queries
            )
        )
        seen = (self.scale, program.window, program.sinks)
        values = (attended, NOWHERE)
        program.add(Attend(self.layer_idx, queries, *sizes, width, *seen, NONE, width, *values))
        program.project([native(self.o_proj).emit()], Norm(), attended, stream, Into.ADD)

    def _heads(self, x_BSX: Tensor) -> Tensor:
        """View cached rows as the heads of keys and values, [B, G, S, H]."""
        x_BGSH: Tensor = x_BSX.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return x_BGSH
