"""From a `ModelConfig` to the metadata that llama.cpp computes by: the way back of `gguf_config`.

Architectures llama, qwen2, qwen3, and deepseek2 for V2 and V3 alike. Read off llama.cpp's sources
and held to its logits by `tests/numerics/test_llama_cpp.py`. What it would compute otherwise, or
refuse to load, is refused here by name: a file that answers worse without a word helps nobody.
"""

from typing import NoReturn

from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from ziphius.models.rope import rope_frequencies, rope_multiplier, yarn_temperature

LATENT = "deepseek2"
Metadata = dict[str, bool | int | float | str]

_LATENT_NORM_EPS = 1e-6
# llama.cpp knows V2-Lite and its like, which have no query compression, by their layers alone.
_LITE_LAYERS = (26, 27)
# llama.cpp's numbers for what becomes of router logits: LLAMA_EXPERT_GATING_FUNC_TYPE_*.
_GATINGS = {"greedy": 1, "group_limited_greedy": 1, "noaux_tc": 2, "topk": 3}


def gguf_metadata(config: ModelConfig) -> Metadata:
    """Describe a model for llama.cpp, the tokenizer aside.

    Raises:
        ConfigError: llama.cpp does not compute what the config says.
    """
    if config.num_nextn_predict_layers:
        raise ConfigError(
            f"num_nextn_predict_layers = {config.num_nextn_predict_layers}: llama.cpp has no MTP "
            "layers; load the model without them: drop_mtp=True (--drop-mtp)."
        )
    if config.pattern != "causal":
        _refuse(config, "pattern", "it has no such pattern of these architectures")
    name = LATENT if config.attention == "mla" else config.model_type
    fields: Metadata = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        **_scaling(config),
    }
    fields |= _latent(config) | _experts(config) if name == LATENT else _grouped(config)
    own = {f"{name}.{key}": value for key, value in fields.items()}
    return {"general.architecture": name, **own}


def frequency_factors(config: ModelConfig) -> Tensor | None:
    """Return what each rotary frequency is divided by, where it is not said in the metadata."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return None
    assert config.head_dim is not None, "only grouped attention has this scaling"
    plain_r = rope_frequencies(config.head_dim, config.rope_theta, None)
    return plain_r / rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)


def _grouped(config: ModelConfig) -> Metadata:
    name = config.model_type
    if config.n_routed_experts:
        _refuse(config, "n_routed_experts", f"its architecture {name} is dense")
    if config.qk_norm != (name == "qwen3"):
        _refuse(config, "qk_norm", f"its architecture {name} leaves no choice")
    if config.attention_bias and name != "llama":
        _refuse(config, "attention_bias", f"its architecture {name} has no such biases")
    if config.qkv_bias and name == "qwen3":
        _refuse(config, "qkv_bias", f"its architecture {name} has no such biases")
    width = config.num_attention_heads * config.q_head_dim
    if name == "qwen2" and width != config.hidden_size:
        _refuse(config, "head_dim", "its architecture qwen2 needs hidden_size / heads")
    return {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.q_head_dim,
        "attention.value_length": config.q_head_dim,
        "rope.dimension_count": config.q_head_dim,
    }


def _latent(config: ModelConfig) -> Metadata:
    """Describe latent attention in its absorbed form: one key and value head, the latent."""
    latent, rotated, value = config.kv_lora_rank, config.qk_rope_head_dim, config.v_head_dim
    assert latent is not None
    assert rotated is not None
    assert value is not None
    if config.rms_norm_eps != _LATENT_NORM_EPS:
        _refuse(config, "rms_norm_eps", "its latent norms have it too, and ours have 1e-6")
    is_lite = config.num_hidden_layers in _LITE_LAYERS
    if is_lite and config.q_lora_rank is not None:
        _refuse(config, "num_hidden_layers", "it takes such a model for V2-Lite: no q_lora_rank")
    compression: Metadata = {} if is_lite else {"attention.q_lora_rank": config.q_lora_rank or 0}
    return compression | {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rotated,
        "attention.value_length": latent,
        "attention.key_length_mla": config.q_head_dim,
        "attention.value_length_mla": value,
        "rope.dimension_count": rotated,
    }


def _experts(config: ModelConfig) -> Metadata:
    if not config.n_routed_experts:
        return {
            "leading_dense_block_count": config.num_hidden_layers,
            "expert_feed_forward_length": config.intermediate_size,
            "expert_shared_count": 0,
        }
    if config.topk_method not in _GATINGS:
        _refuse(config, "topk_method", "it has no such gate")
    if config.moe_layer_freq != 1:
        _refuse(config, "moe_layer_freq", "it has experts in all layers after the dense ones")
    if not config.n_shared_experts:
        _refuse(config, "n_shared_experts", "it needs one or more")
    fields: Metadata = {
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": _GATINGS[config.topk_method],
    }
    limits = config.topk_method in ("noaux_tc", "group_limited_greedy")
    if limits and config.topk_group < config.n_group:
        if config.topk_method != "noaux_tc":
            _refuse(config, "topk_method", "it judges a group by its two best experts, as V3 does")
        fields |= {
            "expert_group_count": config.n_group,
            "expert_group_used_count": config.topk_group,
        }
    return fields


def _scaling(config: ModelConfig) -> Metadata:
    match config.rope_scaling:
        case LinearScaling(factor=factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case YarnScaling() as yarn:
            return _yarn(config, yarn)
        case Llama3Scaling() if config.attention == "mla":
            _refuse(config, "rope_scaling", "its latent attention knows no llama3 scaling")
        case Llama3Scaling(original_max_position_embeddings=context):
            # llama.cpp computes by the factors alone; this is for whoever reads them back.
            return {"rope.scaling.original_context_length": context}
        case _:
            return {}


def _yarn(config: ModelConfig, yarn: YarnScaling) -> Metadata:
    if not yarn.truncate:
        _refuse(config, "truncate", "it always widens the bands")
    fields: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast,
        "rope.scaling.yarn_beta_slow": yarn.beta_slow,
    }
    if config.attention == "mla":
        if yarn.mscale_all_dim is None or rope_multiplier(yarn) != 1:
            _refuse(config, "rope_scaling", "it needs an mscale_all_dim that equals mscale")
        # The factor of 0.1 is a trace of llama.cpp's history, which its loader takes out again.
        return fields | {"rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim}
    return fields | {
        "rope.scaling.attn_factor": rope_multiplier(yarn) / yarn_temperature(yarn.factor, 1.0)
    }


def _refuse(config: ModelConfig, field: str, reason: str) -> NoReturn:
    value = getattr(config, field, None)
    shown = field if value is None else f"{field} = {value}"
    raise ConfigError(f"{shown}: llama.cpp does not run this model: {reason}.")
