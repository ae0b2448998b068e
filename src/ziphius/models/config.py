"""`ModelConfig`: every number that decides what a model is, under the published config.json names.

One config describes all members of the family; what differs between V2, V3, Coder and the dense
students is a value here, never a branch on a model's name. `models/published.py` reads and writes
config.json. Fields that no published file carries are grouped at the end under "our own".
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class YarnScaling(Config):
    """Stretch RoPE by frequency bands: YaRN (arXiv 2309.00071), as V2 and V3 configure it."""

    type: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(ge=1)]
    """How many times longer the context becomes."""
    original_max_position_embeddings: Count
    """Context length before stretching, tokens."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a frequency is left alone."""
    beta_slow: float = 1.0
    """Rotations over the original context below which a frequency is divided by `factor`."""
    mscale: float | None = None
    """Weight of ln(factor) in the cos/sin multiplier; needs `mscale_all_dim`."""
    mscale_all_dim: float | None = None
    """Weight of ln(factor) in the softmax scale of latent attention."""


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
    low_freq_factor: float
    """Rotations over the original context below which a frequency is divided by `factor`."""
    high_freq_factor: float
    """Rotations over the original context above which a frequency is left alone."""


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
    """Decoder layers, without those that predict further tokens."""
    intermediate_size: Annotated[int, Field(ge=1, le=1_048_576)]
    """Width of the dense feed-forward layers."""
    max_position_embeddings: Count = 4_096
    """Longest context the model is meant for, tokens."""
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Epsilon of the block norms (the latent norms of MLA use 1e-6 whatever this says)."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of freshly initialised weights."""
    hidden_act: Literal["silu"] = "silu"
    """Activation of the gated feed-forward layers."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output head."""
    bos_token_id: int | None = None
    """Token that starts a text."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Token or tokens that end a text."""
    pad_token_id: int | None = None
    """Token that fills a batch."""

    # attention
    num_attention_heads: Annotated[int, Field(ge=1, le=4_096)]
    """Query heads N."""
    num_key_value_heads: Annotated[int, Field(ge=1, le=4_096)]
    """Key and value heads; equals `num_attention_heads` for latent attention."""
    head_dim: Count | None = None
    """Width of a head of grouped attention."""
    attention_bias: bool = False
    """Biases on all four projections of grouped attention."""
    q_lora_rank: Count | None = None
    """Width of the compressed query of latent attention; None projects the query directly."""
    kv_lora_rank: Count | None = None
    """Width C of the cached latent."""
    qk_nope_head_dim: Count | None = None
    """Width P of the part of a query or key without position."""
    qk_rope_head_dim: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Width R of the rotated part of a query, and of the one key all heads share."""
    v_head_dim: Count | None = None
    """Width V of a value."""

    # position
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
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

    # further tokens
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=64)] = 0
    """Depth of multi-token prediction: layers that predict one further token each."""

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
