"""Multi-head latent attention (MLA): DeepSeek-V2 report (arXiv 2405.04434), section 2.1.

Two forms of the same function. The expanded one builds every head's keys and values from the
latent and suits many queries (training, prefill). The absorbed one moves `kv_b_proj` into the query
and the output, so that all heads share one key of C + R numbers, and suits few queries (decoding).

Shapes: B sequences, T new tokens, S all tokens, D hidden_size, N heads, C kv_lora_rank,
P qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim, Q q_lora_rank.
"""

import torch
from torch import Tensor, nn

from ziphius.models.attention.backend import AttentionGroup, AttentionMetadata
from ziphius.models.attention_spec import attention_spec
from ziphius.models.cache import row_layouts
from ziphius.models.config import ModelConfig
from ziphius.models.layers import Linear, RMSNorm
from ziphius.models.native import native
from ziphius.models.rope import Rope
from ziphius.ops.attention import attend
from ziphius.ops.latent_heads import key_value_heads, query_heads
from ziphius.ops.native.program_adapters import Factors, Part
from ziphius.ops.native.program_builder import Program
from ziphius.ops.native.program_records import (
    NOWHERE,
    Attend,
    Into,
    LatentHeads,
    Norm,
    Place,
    padded,
)
from ziphius.ops.rotary import rotate_pairs

# The published code fixes this, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


class LatentAttention(nn.Module):
    """Attention whose cache holds one latent per token, C + R numbers, for all heads.

    Attribute names are those of the published checkpoints, so weights load without renaming.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        assert config.qk_nope_head_dim is not None
        assert config.qk_rope_head_dim is not None
        assert config.v_head_dim is not None
        self.layer_idx = layer_idx
        self.spec = attention_spec(config, layer_idx)
        self.num_heads = config.num_attention_heads
        self.latent_width = config.kv_lora_rank
        self.nope_width = config.qk_nope_head_dim
        self.rope_width = config.qk_rope_head_dim
        self.value_width = config.v_head_dim
        self.scale = config.softmax_scale

        query_width = self.num_heads * (self.nope_width + self.rope_width)
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, query_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, query_width)
        self.has_query_latent = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.latent_width + self.rope_width)
        self.kv_a_layernorm = RMSNorm(self.latent_width, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(
            self.latent_width, self.num_heads * (self.nope_width + self.value_width)
        )
        self.o_proj = Linear(self.num_heads * self.value_width, config.hidden_size)

    def forward(self, x_BTD: Tensor, rope: Rope, metadata: AttentionMetadata) -> Tensor:
        """Attend from the T new tokens to all S tokens of each sequence.

        Args:
            x_BTD: normalised hidden states of the new tokens.
            rope: their rotation.
            metadata: what they see; its cache, if any, receives the new latents.

        Returns:
            Hidden states [B, T, D], before the residual is added.
        """
        query_BNTH = self._query(x_BTD, rope)
        # One row per token, [latent | rotated key]: the cache holds it, the absorbed form reads it.
        row_BTX = self._row(x_BTD, rope)
        out_BTX = metadata.attend(self.layer_idx, query_BNTH, (row_BTX,), self._cheapest)
        out_BTD: Tensor = self.o_proj(out_BTX)
        return out_BTD

    def _cheapest(
        self, query_BNTH: Tensor, rows: tuple[Tensor, ...], group: AttentionGroup
    ) -> Tensor:
        """Choose the form by its cost behind a cache; without one the first, which trains."""
        [row_BSX] = rows
        form = self.spec.forms[0]
        if group.is_cached:
            form = self.spec.cheapest(query_BNTH.shape[2], row_BSX.shape[1])
        out_BTNV: Tensor = getattr(self, form.name)(query_BNTH, row_BSX, group)
        return out_BTNV.flatten(-2)

    def expanded(self, query_BNTH: Tensor, row_BSX: Tensor, group: AttentionGroup) -> Tensor:
        """Attend with a key and a value per head, built from the latents; [B, T, N, V]."""
        latent_BSC, k_rope_BSR = row_BSX.split((self.latent_width, self.rope_width), -1)
        expanded_BSNX = self.kv_b_proj(latent_BSC).unflatten(-1, (self.num_heads, -1))
        key_BNSH, value_BNSV = key_value_heads(expanded_BSNX, k_rope_BSR, self.nope_width)
        out_BNTV = attend(
            query_BNTH,
            key_BNSH,
            value_BNSV,
            mask_BTS=group.mask_ZTS,
            is_causal=group.is_causal,
            scale=self.scale,
        )
        return out_BNTV.transpose(1, 2)

    def absorbed(self, query_BNTH: Tensor, row_BSX: Tensor, group: AttentionGroup) -> Tensor:
        """Attend to the latents themselves, one key and value for all heads; [B, T, N, V].

        q . (W_k c) = (q W_k) . c, and sum p (W_v c) = W_v (sum p c): no key or value is built.
        """
        weight_NXC = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        w_k_NPC, w_v_NVC = weight_NXC.split((self.nope_width, self.value_width), 1)
        q_nope_BNTP, q_rope_BNTR = query_BNTH.split((self.nope_width, self.rope_width), -1)
        q_latent_BNTC = torch.einsum("bntp,npc->bntc", q_nope_BNTP, w_k_NPC)
        absorbed_BNTX = torch.cat((q_latent_BNTC, q_rope_BNTR), dim=-1)
        # One key for all heads; the whole row serves as the value too, and its last R columns are
        # thrown away: no copy.
        shared_B1SX = row_BSX.unsqueeze(1)
        out_BNTX = attend(
            absorbed_BNTX,
            shared_B1SX,
            shared_B1SX,
            mask_BTS=group.mask_ZTS,
            is_causal=group.is_causal,
            scale=self.scale,
        )
        return torch.einsum("bntc,nvc->btnv", out_BNTX[..., : self.latent_width], w_v_NVC)

    def emit(self, program: Program, norm: Norm, stream: Place, angles: Place) -> None:
        """Have a native program add attention of the normalised stream to the stream.

        In the absorbed form alone, whatever the number of queries: sums have one order.
        """
        row_layer = native(self.kv_a_proj_with_mqa).emit()
        if self.has_query_latent:
            first = [native(self.q_a_proj).emit(), row_layer]
            latent, row = program.project(first, norm, stream, "projected")
            query_norm = native(self.q_a_layernorm).emit(program)
            second = [native(self.q_b_proj).emit()]
            [raw] = program.project(second, query_norm, latent, "raw queries")
        else:
            first = [native(self.q_proj).emit(), row_layer]
            raw, row = program.project(first, norm, stream, "projected")
        heads, nope, rope, latent_width = (
            self.num_heads,
            self.nope_width,
            self.rope_width,
            self.latent_width,
        )
        key_width = latent_width + rope
        weight_XC = native(self.kv_b_proj).emit().weight_OI
        weight_NXC = weight_XC.unflatten(0, (heads, -1))
        w_k_NPC, w_v_NVC = weight_NXC.split((nope, self.value_width), 1)
        [queries] = program.place("queries", heads * padded(key_width))
        [attended] = program.place("attended", heads * self.value_width)
        program.cache_layouts[self.layer_idx] = row_layouts(self.spec.cache)
        program.add(
            LatentHeads(
                self.layer_idx,
                raw,
                row,
                native(self.kv_a_layernorm).emit(program),
                angles,
                *(heads, nope, rope, latent_width),
                program.weights(*w_k_NPC.mT),
                queries,
            )
        )
        keys, values = self._adapter_parts()
        program.adapt(weight_XC, Norm(), raw, queries, part=keys)
        latents = NOWHERE
        if program.takes_adapters(weight_XC):
            [latents] = program.place("latents", heads * padded(latent_width))
        program.add(
            Attend(
                self.layer_idx,
                queries,
                *(heads, 1, key_width, latent_width),
                *(self.scale, program.window, program.sinks),
                program.weights(*w_v_NVC),
                self.value_width,
                attended,
                latents,
            )
        )
        program.adapt(weight_XC, Norm(), latents, attended, part=values)
        program.project([native(self.o_proj).emit()], Norm(), attended, stream, Into.ADD)

    def _adapter_parts(self) -> tuple[Part, Part]:
        """Say what `kv_b_proj` takes of an adapter where queries take keys in, and for values.

        As W_k + up_k down: q W_k becomes q W_k + (q up_k) down, of each head with its own up_k.
        """
        heads, nope, values = self.num_heads, self.nope_width, self.value_width
        latent = self.latent_width

        def keys_of(down_rC: Tensor, up_Xr: Tensor) -> Factors:
            return list(up_Xr.unflatten(0, (heads, -1))[:, :nope].mT), [down_rC.mT]

        def values_of(down_rC: Tensor, up_Xr: Tensor) -> Factors:
            return [down_rC], list(up_Xr.unflatten(0, (heads, -1))[:, nope:])

        return (
            Part(
                keys_of,
                *(nope, latent, heads, nope + self.rope_width, padded(latent + self.rope_width)),
                down_each=True,
            ),
            Part(values_of, latent, values, heads, padded(latent), values, up_each=True),
        )

    def _query(self, x_BTD: Tensor, rope: Rope) -> Tensor:
        """Project to rotated heads [B, N, T, P + R], through the query latent if there is one."""
        if self.has_query_latent:
            flat_BTX = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        else:
            flat_BTX = self.q_proj(x_BTD)
        query_BTNH = flat_BTX.unflatten(-1, (self.num_heads, -1))
        return query_heads(query_BTNH, rope.cos_BTr, rope.sin_BTr)

    def _row(self, x_BTD: Tensor, rope: Rope) -> Tensor:
        """Project to what is cached, [B, T, C + R]: the normalised latent and the rotated key."""
        latent_BTC, k_rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split(
            (self.latent_width, self.rope_width), -1
        )
        k_rope_BTR = rotate_pairs(k_rope_BTR.unsqueeze(2), rope.cos_BTr, rope.sin_BTr).squeeze(2)
        return torch.cat((self.kv_a_layernorm(latent_BTC), k_rope_BTR), dim=-1)
