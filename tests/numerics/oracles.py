"""Random configs of each family, and the transformers model of the same config and weights."""

from typing import Any

import torch
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from ziphius.models.model import Model
from ziphius.models.published import to_published

EXAMPLES = examples(80)

# An RMSNorm over few numbers divides by nearly nothing now and then, and what is rounding noise
# before it is not after it.
MIN_WIDTH = 8

seeds = st.integers(0, 2**20)


@st.composite
def yarn(draw: st.DrawFn) -> YarnScaling:
    mscale, mscale_all_dim = draw(
        st.sampled_from([(None, None), (1.0, 1.0), (0.707, 0.707), (0.5, 1.3)])
    )
    beta_fast, beta_slow = draw(st.sampled_from([(32.0, 1.0), (4.0, 0.5)]))
    return YarnScaling(
        factor=draw(st.sampled_from([1.0, 2.5, 40.0])),
        original_max_position_embeddings=draw(st.sampled_from([16, 64, 4096])),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


@st.composite
def other_scaling(draw: st.DrawFn) -> LinearScaling | Llama3Scaling:
    if draw(st.booleans()):
        return LinearScaling(factor=draw(st.sampled_from([2.0, 4.0])))
    return Llama3Scaling(
        factor=8.0,
        original_max_position_embeddings=draw(st.sampled_from([16, 128, 8192])),
        low_freq_factor=1.0,
        high_freq_factor=draw(st.sampled_from([2.0, 4.0])),
    )


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "vocab_size": draw(st.integers(2, 50)),
        "hidden_size": draw(st.integers(MIN_WIDTH, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 40)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "rope_theta": draw(st.sampled_from([500.0, 10_000.0, 1e6])),
        "max_position_embeddings": 4096,
    }


@st.composite
def latent_sizes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 5))
    nope = draw(st.integers(1, 12))
    rope = 2 * draw(st.integers(1, 5))
    return draw(sizes()) | {
        "attention": "mla",
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.none() | st.integers(MIN_WIDTH, 24)),
        "kv_lora_rank": draw(st.integers(MIN_WIDTH, 24)),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": draw(st.integers(1, nope + rope)),
        "rope_scaling": draw(st.none() | yarn()),
    }


@st.composite
def experts(draw: st.DrawFn, layers: int, grouped: bool) -> dict[str, Any]:
    groups = draw(st.integers(1, 4)) if grouped else 1
    per_group = draw(st.integers(2, 4)) if grouped else draw(st.integers(1, 8))
    top_groups = draw(st.integers(1, groups))
    return {
        "n_routed_experts": groups * per_group,
        "n_shared_experts": draw(st.integers(1, 2)),
        "num_experts_per_tok": draw(st.integers(1, min(4, top_groups * per_group))),
        "moe_intermediate_size": draw(st.integers(1, 20)),
        "first_k_dense_replace": draw(st.integers(0, layers - 1)),
        "n_group": groups,
        "topk_group": top_groups,
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }


@st.composite
def v2_configs(draw: st.DrawFn) -> ModelConfig:
    fields = draw(latent_sizes())
    # transformers views pairs as complex numbers, which must start at an even offset, and refuses
    # a hidden_size that the heads do not divide
    for name in ("qk_nope_head_dim", "kv_lora_rank"):
        fields[name] += fields[name] % 2
    fields["hidden_size"] = fields["num_attention_heads"] * draw(st.integers(MIN_WIDTH, 12))
    method = draw(st.sampled_from(["greedy", "group_limited_greedy"]))
    fields |= draw(experts(fields["num_hidden_layers"], method != "greedy"))
    return ModelConfig(model_type="deepseek_v2", topk_method=method, **fields)


@st.composite
def v3_configs(draw: st.DrawFn, depths: int = 0) -> ModelConfig:
    fields = draw(latent_sizes())
    fields |= draw(experts(fields["num_hidden_layers"], True))
    return ModelConfig(
        model_type="deepseek_v3",
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=draw(st.booleans()),
        num_nextn_predict_layers=depths,
        **fields,
    )


@st.composite
def grouped_configs(draw: st.DrawFn, model_type: str, **implied: bool) -> ModelConfig:
    key_heads = draw(st.integers(1, 3))
    scaling = draw(st.none() | yarn() | other_scaling())
    if model_type in ("llama", "qwen3"):
        implied = implied | {"attention_bias": draw(st.booleans())}
    heads = key_heads * draw(st.integers(1, 4))
    fields = draw(sizes())
    if model_type == "llama":
        # transformers refuses others, though head_dim is given
        fields["hidden_size"] = heads * draw(st.integers(MIN_WIDTH, 12))
    return ModelConfig(
        model_type=model_type,
        attention="gqa",
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=2 * draw(st.integers(MIN_WIDTH // 2, 8)),
        tie_word_embeddings=draw(st.booleans()),
        rope_scaling=scaling,
        **implied,
        **fields,
    )


CONFIGS = {
    "deepseek_v2": v2_configs(),
    "deepseek_v3": v3_configs(),
    "llama": grouped_configs("llama"),
    "qwen2": grouped_configs("qwen2", qkv_bias=True),
    "qwen3": grouped_configs("qwen3", qk_norm=True),
}


def twin(model: Model) -> torch.nn.Module:
    """Build what transformers makes of the model's config.json, with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    published = to_published(model.config)
    config = AutoConfig.for_model(published.pop("model_type"), **published)
    theirs = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    layers = model.config.num_hidden_layers
    mtp_layers = tuple(
        f"model.layers.{layers + depth}." for depth in range(model.config.num_nextn_predict_layers)
    )
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(mtp_layers)
    }
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()
