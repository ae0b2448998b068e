"""Named model shapes: the published ones, and small ones of the same make for CPU work.

Sources: DeepSeek-V2 (arXiv 2405.04434) sections 3.1.2 and B, DeepSeek-V3 (2412.19437) section 4.2,
DeepSeek-Coder (2401.14196) section 3.3, DeepSeek-R1 (2501.12948) section 2.4, and the config.json
published with each. One thing differs from those files: they say initializer_range 0.02 for V2 and
V3, which were trained with 0.006 by their papers, and a preset is what a training starts from.

`*-tiny` takes every branch of its family with fewer than 300k parameters, for tests. The number in
`v3-1m`, `v2-3m`, `dense-10m` counts the active parameters beside embedding and head.
"""

from typing import Any

from ziphius.core.errors import ConfigError
from ziphius.models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling


def get_preset(name: str) -> ModelConfig:
    """Return the config of that name; an unknown one is answered with the list."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]


def derive(base: ModelConfig, **changes: Any) -> ModelConfig:
    """Copy a config with changes and check the result, which `model_copy` does not."""
    return ModelConfig.model_validate(base.model_dump() | changes)


def _yarn(factor: float, context: int, mscale: float) -> YarnScaling:
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=context,
        mscale=mscale,
        mscale_all_dim=mscale,
    )


def _llama3(factor: float, context: int) -> Llama3Scaling:
    return Llama3Scaling(
        factor=factor,
        original_max_position_embeddings=context,
        low_freq_factor=1,
        high_freq_factor=4,
    )


_V2 = ModelConfig(
    model_type="deepseek_v2",
    attention="mla",
    vocab_size=102_400,
    hidden_size=5_120,
    num_hidden_layers=60,
    intermediate_size=12_288,
    max_position_embeddings=163_840,
    initializer_range=0.006,
    bos_token_id=100_000,
    eos_token_id=100_001,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1_536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    # Copies of V2's config.json disagree (0.707 or 1.0); 0.707 is the paper's 0.0707 ln(s) + 1.
    rope_scaling=_yarn(40, 4_096, 0.707),
    n_routed_experts=160,
    n_shared_experts=2,
    num_experts_per_tok=6,
    moe_intermediate_size=1_536,
    first_k_dense_replace=1,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    routed_scaling_factor=16.0,
    aux_loss_alpha=0.001,
)

_V2_LITE = derive(
    _V2,
    hidden_size=2_048,
    num_hidden_layers=27,
    intermediate_size=10_944,
    num_attention_heads=16,
    num_key_value_heads=16,
    q_lora_rank=None,
    n_routed_experts=64,
    moe_intermediate_size=1_408,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
)

_V3 = derive(
    _V2,
    model_type="deepseek_v3",
    vocab_size=129_280,
    hidden_size=7_168,
    num_hidden_layers=61,
    intermediate_size=18_432,
    bos_token_id=0,
    eos_token_id=1,
    rope_scaling=_yarn(40, 4_096, 1.0),
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=2_048,
    first_k_dense_replace=3,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    topk_group=4,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    aux_loss_alpha=0.0001,
    num_nextn_predict_layers=1,
)

_CODER_6_7B = ModelConfig(
    model_type="llama",
    attention="gqa",
    vocab_size=32_256,
    hidden_size=4_096,
    num_hidden_layers=32,
    intermediate_size=11_008,
    max_position_embeddings=16_384,
    bos_token_id=32_013,
    eos_token_id=32_014,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    rope_theta=100_000.0,
    rope_scaling=LinearScaling(factor=4),
)
_CODER_1_3B = derive(
    _CODER_6_7B,
    hidden_size=2_048,
    num_hidden_layers=24,
    intermediate_size=5_504,
    num_attention_heads=16,
    num_key_value_heads=16,
)
_CODER_33B = derive(
    _CODER_6_7B,
    hidden_size=7_168,
    num_hidden_layers=62,
    intermediate_size=19_200,
    num_attention_heads=56,
    num_key_value_heads=8,
)

_QWEN_7B = ModelConfig(
    model_type="qwen2",
    attention="gqa",
    qkv_bias=True,
    vocab_size=152_064,
    hidden_size=3_584,
    num_hidden_layers=28,
    intermediate_size=18_944,
    max_position_embeddings=131_072,
    bos_token_id=151_646,
    eos_token_id=151_643,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
)
_QWEN_1_5B = derive(
    _QWEN_7B,
    vocab_size=151_936,
    hidden_size=1_536,
    intermediate_size=8_960,
    num_attention_heads=12,
    num_key_value_heads=2,
)
_QWEN_32B = derive(
    _QWEN_7B,
    hidden_size=5_120,
    num_hidden_layers=64,
    intermediate_size=27_648,
    rms_norm_eps=1e-5,
    num_attention_heads=40,
    num_key_value_heads=8,
    rope_theta=1_000_000.0,
)
_QWEN_14B = derive(_QWEN_32B, num_hidden_layers=48, intermediate_size=13_824)

_LLAMA_8B = derive(
    _CODER_6_7B,
    vocab_size=128_256,
    intermediate_size=14_336,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    bos_token_id=128_000,
    eos_token_id=128_001,
    num_key_value_heads=8,
    rope_theta=500_000.0,
    rope_scaling=_llama3(8, 8_192),
)
_LLAMA_70B = derive(
    _LLAMA_8B,
    hidden_size=8_192,
    num_hidden_layers=80,
    intermediate_size=28_672,
    num_attention_heads=64,
)

# A small chat model that is free to use, and comes in a package (arXiv 2502.02737).
_SMOLLM2_135M = derive(
    _LLAMA_8B,
    vocab_size=49_152,
    hidden_size=576,
    num_hidden_layers=30,
    intermediate_size=1_536,
    max_position_embeddings=8_192,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rope_theta=100_000.0,
    rope_scaling=None,
)

# The shape that bench/ runs; SMALL and TINY models of V3's make are cut from it.
_BENCH_V3 = derive(
    _V3,
    vocab_size=4_096,
    hidden_size=256,
    num_hidden_layers=6,
    intermediate_size=640,
    max_position_embeddings=4_096,
    initializer_range=0.02,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    rope_scaling=None,
    n_routed_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    num_nextn_predict_layers=0,
)

_V3_3M = derive(_BENCH_V3, vocab_size=8_192, num_hidden_layers=5, num_nextn_predict_layers=1)
_V3_1M = derive(
    _V3_3M,
    vocab_size=4_096,
    hidden_size=128,
    num_hidden_layers=6,
    intermediate_size=320,
    q_lora_rank=64,
    moe_intermediate_size=64,
)
_V3_10M = derive(
    _V3_3M,
    vocab_size=16_384,
    hidden_size=384,
    num_hidden_layers=7,
    intermediate_size=960,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=128,
    kv_lora_rank=96,
    n_routed_experts=32,
    moe_intermediate_size=192,
)
_V3_TINY = derive(
    _V3_3M,
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    intermediate_size=128,
    max_position_embeddings=2_048,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    rope_scaling=_yarn(4, 512, 1.0),
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=16,
)


def _as_v2(v3: ModelConfig, **changes: Any) -> ModelConfig:
    """Give a small V3 shape V2's gate, losses and two shared experts, at the same active size.

    The weights of V2's gate sum to about K / E before scaling; 0.75 E / K keeps the routed part
    near the size of the shared one, as 16.0 does in V2.
    """
    experts_per_token = v3.num_experts_per_tok - 1
    return derive(
        v3,
        model_type="deepseek_v2",
        n_shared_experts=2,
        num_experts_per_tok=experts_per_token,
        topk_method="group_limited_greedy",
        scoring_func="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=0.75 * v3.n_routed_experts / experts_per_token,
        # V2's report, section 3.1.2.
        aux_loss_alpha=0.003,
        device_loss_alpha=0.05,
        communication_loss_alpha=0.02,
        num_nextn_predict_layers=0,
        **changes,
    )


_V2_TINY = _as_v2(_V3_TINY, rope_scaling=_yarn(4, 512, 0.707))
_V2_LITE_TINY = derive(
    _V2_TINY,
    q_lora_rank=None,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    aux_loss_alpha=0.001,
    device_loss_alpha=0.0,
    communication_loss_alpha=0.0,
)

_DENSE_1M = derive(
    _CODER_6_7B,
    vocab_size=4_096,
    hidden_size=128,
    num_hidden_layers=6,
    intermediate_size=320,
    max_position_embeddings=4_096,
    bos_token_id=0,
    eos_token_id=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=10_000.0,
    rope_scaling=None,
)
_DENSE_3M = derive(
    _DENSE_1M,
    vocab_size=8_192,
    hidden_size=256,
    num_hidden_layers=5,
    intermediate_size=512,
    num_attention_heads=8,
    num_key_value_heads=4,
)
_DENSE_10M = derive(
    _DENSE_1M,
    vocab_size=16_384,
    hidden_size=384,
    num_hidden_layers=7,
    intermediate_size=896,
    num_attention_heads=12,
    num_key_value_heads=4,
)

_TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 2_048,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_CODER_TINY = derive(_CODER_1_3B, **_TINY_LLAMA | {"num_key_value_heads": 4})
_QWEN_TINY = derive(_QWEN_1_5B, **_TINY_LLAMA)
_LLAMA_TINY = derive(_LLAMA_8B, **_TINY_LLAMA, rope_scaling=_llama3(8, 256))
_QWEN3_TINY = derive(
    _QWEN_TINY,
    model_type="qwen3",
    qkv_bias=False,
    qk_norm=True,
    head_dim=32,
    tie_word_embeddings=True,
)

PRESETS: dict[str, ModelConfig] = {
    "v2": _V2,
    "v2.5": _V2,
    "coder-v2": _V2,
    "v2-lite": _V2_LITE,
    "coder-v2-lite": _V2_LITE,
    "v3": _V3,
    "v3.1": _V3,
    "r1-zero": _V3,
    "r1": _V3,
    "coder-1.3b": _CODER_1_3B,
    "coder-6.7b": _CODER_6_7B,
    "coder-33b": _CODER_33B,
    "r1-distill-qwen-1.5b": _QWEN_1_5B,
    "r1-distill-qwen-7b": _QWEN_7B,
    "r1-distill-qwen-14b": _QWEN_14B,
    "r1-distill-qwen-32b": _QWEN_32B,
    "r1-distill-llama-8b": _LLAMA_8B,
    "r1-distill-llama-70b": _LLAMA_70B,
    "smollm2-135m": _SMOLLM2_135M,
    "v2-1m": _as_v2(_V3_1M),
    "v2-3m": _as_v2(_V3_3M),
    "v2-10m": _as_v2(_V3_10M),
    "v3-1m": _V3_1M,
    "v3-3m": _V3_3M,
    "v3-10m": _V3_10M,
    "dense-1m": _DENSE_1M,
    "dense-3m": _DENSE_3M,
    "dense-10m": _DENSE_10M,
    "bench-v3": _BENCH_V3,
    "v2-tiny": _V2_TINY,
    "v2-lite-tiny": _V2_LITE_TINY,
    "v3-tiny": _V3_TINY,
    "coder-tiny": _CODER_TINY,
    "r1-distill-qwen-tiny": _QWEN_TINY,
    "r1-distill-llama-tiny": _LLAMA_TINY,
    "qwen3-tiny": _QWEN3_TINY,
}
"""By the name a user types; names with the same architecture share one config."""
