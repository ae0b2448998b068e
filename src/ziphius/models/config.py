"""`ModelConfig`: every number that decides what a model is, under the published config.json names.

One config describes all members of the family; what differs between V2, V3, Coder and the dense
students is a value here, never a branch on a model's name. `models/published.py` reads and writes
config.json. Fields that no published file carries are grouped at the end under "our own".
"""

import math
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

# Upper bounds are far above every published model: they stop a lying config.json before any memory
# is asked for, and keep every product of sizes exact.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
TokenId = Annotated[int, Field(ge=0)]


class YarnScaling(Config):
    """Stretch RoPE by frequency bands: YaRN (arXiv 2309.00071), as V2 and V3 configure it."""

    type: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(ge=1)]
    """How many times longer the context becomes."""
    original_max_position_embeddings: Count
    """Context length before stretching, tokens."""
    beta_fast: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    """Rotations over the original context above which a frequency is left alone."""
    beta_slow: Annotated[float, Field(ge=1e-6)] = 1.0
    """Rotations over the original context below which a frequency is divided by `factor`."""
    mscale: Annotated[float, Field(gt=0)] | None = None
    """Weight of ln(factor) in the cos/sin multiplier; needs `mscale_all_dim`."""
    mscale_all_dim: Annotated[float, Field(gt=0)] | None = None
    """Weight of ln(factor) in the softmax scale of latent attention; needs `mscale`."""
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """The cos/sin multiplier itself, instead of what follows from `factor` and `mscale`."""
    attn_factor: Annotated[float, Field(gt=0)] | None = None
    """Factor on the cos/sin multiplier, as vLLM reads it and R1-0528-Qwen3-8B sets it;
    transformers 5.23 warns of it and goes on without."""
    truncate: bool = True
    """Widen the bands to whole frequencies."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_factor is not None and self.attn_factor is not None:
            rule = f"has no effect beside attention_factor = {self.attention_factor}"
            _refuse("attn_factor", self.attn_factor, rule)
        if self.beta_slow >= self.beta_fast:
            _refuse("beta_slow", self.beta_slow, f"must be below beta_fast = {self.beta_fast}")
        # With one of the two, the published code and transformers compute different multipliers.
        if (self.mscale is None) != (self.mscale_all_dim is None):
            name = "mscale" if self.mscale_all_dim is None else "mscale_all_dim"
            _refuse(name, getattr(self, name), "give mscale and mscale_all_dim together or neither")
        return self


class LinearScaling(Config):
    """Divide every RoPE frequency by `factor`, as Coder v1's long-context step does."""

    type: Literal["linear"] = "linear"
    factor: Annotated[float, Field(ge=1)]
    """How many times longer the context becomes."""


class Llama3Scaling(Config):
    """Stretch the slow RoPE frequencies only, with a smooth step between: Llama 3.1's rule."""

    type: Literal["llama3"] = "llama3"
    factor: Annotated[float, Field(ge=1)]
    """How many times longer the context becomes."""
    original_max_position_embeddings: Count
    """Context length before stretching, tokens."""
    low_freq_factor: Annotated[float, Field(gt=0)]
    """Rotations over the original context below which a frequency is divided by `factor`."""
    high_freq_factor: Annotated[float, Field(gt=0)]
    """Rotations over the original context above which a frequency is left alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            rule = f"must be below high_freq_factor = {self.high_freq_factor}"
            _refuse("low_freq_factor", self.low_freq_factor, rule)
        return self


RopeScaling = Annotated[YarnScaling | LinearScaling | Llama3Scaling, Field(discriminator="type")]


class ModelConfig(Config):
    """The architecture of one model: sizes, attention, position, experts and prediction depth."""

    model_type: Literal["deepseek_v2", "deepseek_v3", "llama", "qwen2", "qwen3"]
    """Published name of the architecture; decides only how config.json is read and written."""

    # sizes
    vocab_size: Annotated[int, Field(ge=1, le=1_048_576)]
    """Rows of the embedding and of the output head."""
    hidden_size: Annotated[int, Field(ge=1, le=65_536)]
    """Width D of the residual stream."""
    num_hidden_layers: Annotated[int, Field(ge=1, le=512)]
    """Decoder layers, without the MTP layers."""
    intermediate_size: Annotated[int, Field(ge=1, le=1_048_576)]
    """Width of the dense feed-forward layers."""
    max_position_embeddings: Count = 4_096
    """Longest context the model is meant for, tokens."""
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Epsilon of the block norms (the latent norms of MLA use 1e-6 whatever this says)."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of freshly initialised weights."""
    hidden_act: Literal["silu"] = "silu"
    """Activation of the gated feed-forward layers."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output head."""
    bos_token_id: TokenId | None = None
    """Token that starts a text."""
    eos_token_id: TokenId | Annotated[tuple[TokenId, ...], Field(min_length=1)] | None = None
    """Token or tokens that end a text."""
    pad_token_id: TokenId | None = None
    """Token that fills a batch."""

    # attention
    num_attention_heads: Annotated[int, Field(ge=1, le=4_096)]
    """Query heads N."""
    num_key_value_heads: Annotated[int, Field(ge=1, le=4_096)]
    """Key and value heads; equals `num_attention_heads` for latent attention."""
    head_dim: Width | None = None
    """Width of a head of grouped attention; an even number, because RoPE turns pairs."""
    attention_bias: bool = False
    """Biases on all four projections of grouped attention."""
    q_lora_rank: Width | None = None
    """Width of the compressed query of latent attention; None projects the query directly."""
    kv_lora_rank: Width | None = None
    """Width C of the cached latent."""
    qk_nope_head_dim: Width | None = None
    """Width P of the part of a query or key without position."""
    qk_rope_head_dim: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] | None = None
    """Width R of the rotated part of a query, and of the one key all heads share."""
    v_head_dim: Width | None = None
    """Width V of a value."""

    # position
    rope_theta: Annotated[float, Field(gt=1)] = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How the rotary frequencies are stretched to a longer context."""

    # experts (0 routed experts: every layer is dense)
    n_routed_experts: Annotated[int, Field(ge=0, le=4_096)] = 0
    """Routed experts E of an expert layer."""
    n_shared_experts: Annotated[int, Field(ge=0, le=4_096)] = 0
    """Experts every token uses, kept as one wider feed-forward layer."""
    num_experts_per_tok: Annotated[int, Field(ge=0, le=4_096)] = 0
    """Routed experts K that a token uses."""
    moe_intermediate_size: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    """Width F of one expert."""
    first_k_dense_replace: Annotated[int, Field(ge=0)] = 0
    """Leading layers that stay dense."""
    moe_layer_freq: Count = 1
    """Every how many layers an expert layer stands."""
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc", "topk"] = "greedy"
    """Which gate routes: V2-Lite's, V2's, V3's, or the plain one; see `models/gates`."""
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    """How router logits become scores."""
    n_group: Count = 1
    """Groups (nodes) the routed experts are divided into."""
    topk_group: Count = 1
    """Groups a token may reach."""
    norm_topk_prob: bool = False
    """Divide the chosen weights by their sum."""
    routed_scaling_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the chosen weights."""
    aux_loss_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the expert balance loss."""
    seq_aux: bool = True
    """Take the expert balance loss of each sequence instead of the whole batch."""

    # multi-token prediction
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=64)] = 0
    """Depth of multi-token prediction: MTP layers, each for one token more."""

    # our own: in config.json under the key "ziphius"
    attention: Literal["mla", "gqa"]
    """Latent or grouped attention; see `models/attention`."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections only (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm on each query and key head (Qwen3)."""
    pattern: Literal["causal", "sliding_window"] = "causal"
    """What a query may see; see `models/patterns.py`."""
    sliding_window: Count | None = None
    """Last tokens a query sees, itself included, with pattern sliding_window."""
    attention_sinks: Annotated[int, Field(ge=0)] = 0
    """First tokens of a document that stay visible beside the window."""
    head: Literal["lm"] = "lm"
    """What stands on the trunk; see `models/heads`."""
    device_loss_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of V2's device balance loss; a group of experts is a device."""
    communication_loss_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of V2's communication balance loss."""
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """Drop in training what exceeds this multiple of a device's even share (V2: 1.0)."""

    other: dict[str, Any] = Field(default_factory=dict)
    """Keys of a config.json that this code does not know; written back unchanged."""

    @property
    def q_head_dim(self) -> int:
        """Width of a query or key head: P + R for latent attention."""
        if self.attention == "mla":
            assert self.qk_nope_head_dim is not None
            assert self.qk_rope_head_dim is not None
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        assert self.head_dim is not None
        return self.head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on attention scores; latent attention has YaRN's temperature squared in it."""
        scale = 1.0 / math.sqrt(self.q_head_dim)
        scaling = self.rope_scaling
        if self.attention == "mla" and isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
            scale *= (0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1.0) ** 2
        return scale

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a text; empty if the config names none."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def is_expert_layer(self, layer_idx: int) -> bool:
        """Tell whether a layer routes; indices from `num_hidden_layers` on are the MTP layers."""
        if not self.n_routed_experts:
            return False
        if layer_idx >= self.num_hidden_layers:
            return True
        return layer_idx >= self.first_k_dense_replace and layer_idx % self.moe_layer_freq == 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_tokens()
        if self.attention == "mla":
            self._check_latent_attention()
        else:
            self._check_grouped_attention()
        self._check_pattern()
        if self.n_routed_experts:
            self._check_experts()
            self._check_gate()
            self._check_balance()
        else:
            self._no_effect("without n_routed_experts", *_EXPERT_FIELDS)
        return self

    def _check_tokens(self) -> None:
        ids = {"bos_token_id": self.bos_token_id, "pad_token_id": self.pad_token_id}
        highest_eos = max(self.eos_token_ids, default=None)
        for name, token in (ids | {"eos_token_id": highest_eos}).items():
            if token is not None and token >= self.vocab_size:
                _refuse(name, token, f"must be below vocab_size = {self.vocab_size}")

    def _check_latent_attention(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) is None:
                _refuse(name, None, "latent attention needs a width from 1")
        if self.num_key_value_heads != self.num_attention_heads:
            rule = f"latent attention needs num_attention_heads = {self.num_attention_heads}"
            _refuse("num_key_value_heads", self.num_key_value_heads, rule)
        assert self.v_head_dim is not None
        if self.v_head_dim > self.q_head_dim:
            # The fused attention kernels want values no wider than keys.
            rule = f"must be at most qk_nope_head_dim + qk_rope_head_dim = {self.q_head_dim}"
            _refuse("v_head_dim", self.v_head_dim, rule)
        if self.attention_bias:
            rule = "latent attention with biases is not supported; no published model has them"
            _refuse("attention_bias", True, rule)
        self._no_effect("with latent attention", "head_dim", "qkv_bias", "qk_norm")

    def _check_grouped_attention(self) -> None:
        if self.head_dim is None or self.head_dim % 2:
            _refuse("head_dim", self.head_dim, "grouped attention needs an even width from 2")
        if self.num_attention_heads % self.num_key_value_heads:
            rule = f"must divide num_attention_heads = {self.num_attention_heads}"
            _refuse("num_key_value_heads", self.num_key_value_heads, rule)
        if self.attention_bias:
            self._no_effect("beside attention_bias, which includes it", "qkv_bias")
        self._no_effect("with grouped attention", *_LATENT_FIELDS)

    def _check_pattern(self) -> None:
        if self.pattern == "sliding_window":
            if self.sliding_window is None:
                _refuse("sliding_window", None, "pattern sliding_window needs a number from 1")
        else:
            reason = f"with pattern {self.pattern}"
            self._no_effect(reason, "sliding_window", "attention_sinks")

    def _check_experts(self) -> None:
        if not self.num_experts_per_tok or not self.moe_intermediate_size:
            name = "moe_intermediate_size" if self.num_experts_per_tok else "num_experts_per_tok"
            _refuse(name, 0, f"n_routed_experts = {self.n_routed_experts} needs it to be 1 or more")
        if self.num_experts_per_tok > self.n_routed_experts:
            rule = f"must be at most n_routed_experts = {self.n_routed_experts}"
            _refuse("num_experts_per_tok", self.num_experts_per_tok, rule)
        layers = self.num_hidden_layers + self.num_nextn_predict_layers
        if not any(self.is_expert_layer(index) for index in range(layers)):
            rule = (
                f"leaves no expert layer among {self.num_hidden_layers} layers; lower it, or set "
                "n_routed_experts to 0 (null) for a dense model"
            )
            _refuse("first_k_dense_replace", self.first_k_dense_replace, rule)

    def _check_gate(self) -> None:
        scoring = "sigmoid" if self.topk_method == "noaux_tc" else "softmax"
        if self.scoring_func != scoring:
            rule = f"topk_method {self.topk_method} needs {scoring}"
            _refuse("scoring_func", self.scoring_func, rule)
        self._check_what_the_gate_reads()
        if self.topk_method != "noaux_tc" and self.norm_topk_prob:
            # V2's published code divides by the sum or multiplies by the factor, never both.
            reason = f"with topk_method {self.topk_method} and norm_topk_prob"
            self._no_effect(reason, "routed_scaling_factor")
        if self.n_routed_experts % self.n_group:
            rule = f"must divide n_routed_experts = {self.n_routed_experts}"
            _refuse("n_group", self.n_group, rule)
        if self.topk_group > self.n_group:
            _refuse("topk_group", self.topk_group, f"must be at most n_group = {self.n_group}")
        group_size = self.n_routed_experts // self.n_group
        if self.topk_method == "noaux_tc" and group_size < 2:
            rule = f"must be at most {self.n_routed_experts // 2}: a group needs 2 experts"
            _refuse("n_group", self.n_group, rule)
        reachable = self.topk_group * group_size
        if "topk_group" in GATE_SETTINGS[self.topk_method] and self.num_experts_per_tok > reachable:
            rule = f"must be at most {reachable}, the experts of topk_group groups"
            _refuse("num_experts_per_tok", self.num_experts_per_tok, rule)

    def _check_what_the_gate_reads(self) -> None:
        """Refuse the settings of other gates, which this one would ignore."""
        known = dict.fromkeys(name for names in GATE_SETTINGS.values() for name in names)
        ignored = [name for name in known if name not in GATE_SETTINGS[self.topk_method]]
        reason = f"with topk_method {self.topk_method}"
        if self.device_loss_alpha or self.communication_loss_alpha or self.capacity_factor:
            # Groups are the devices of these balance losses, too.
            ignored = [name for name in ignored if name not in _GROUPS]
        elif "n_group" in ignored:
            reason += " and no device loss or capacity_factor"
        self._no_effect(reason, *ignored)

    def _check_balance(self) -> None:
        if not self.aux_loss_alpha:
            self._no_effect("with aux_loss_alpha = 0", "seq_aux")
        if self.n_group == 1:
            self._no_effect("with n_group = 1", *_DEVICE_FIELDS)

    def _no_effect(self, reason: str, *names: str) -> None:
        """Refuse settings that differ from their default where they would change nothing."""
        for name in names:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                _refuse(name, getattr(self, name), f"has no effect {reason}; leave it {default}")


_WEIGHING = ("norm_topk_prob", "routed_scaling_factor")
_GROUPS = ("n_group", "topk_group")
GATE_SETTINGS: dict[str, tuple[str, ...]] = {
    "topk": ("routed_scaling_factor",),
    "greedy": _WEIGHING,
    "group_limited_greedy": (*_WEIGHING, *_GROUPS),
    "noaux_tc": (*_WEIGHING, *_GROUPS),
}
"""What each gate reads, beside how many experts there are: one that ignores what another reads
refuses it."""

_LATENT_FIELDS = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_DEVICE_FIELDS = ("device_loss_alpha", "communication_loss_alpha", "capacity_factor")
_EXPERT_FIELDS = (
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "moe_layer_freq",
    "topk_method",
    "scoring_func",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "routed_scaling_factor",
    "aux_loss_alpha",
    "seq_aux",
    *_DEVICE_FIELDS,
)


def _refuse(field: str, value: object, rule: str) -> NoReturn:
    """Raise the error of a bad setting, worded the same everywhere."""
    raise ConfigError(f"{field} = {value}: {rule}.")
