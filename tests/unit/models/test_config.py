from typing import Any

import pytest
from pydantic import ValidationError

from ziphius.core.config import explain
from ziphius.models.attention_spec import cache_specs
from ziphius.models.config import Llama3Scaling, ModelConfig, YarnScaling
from ziphius.models.presets import derive, get_preset

V3 = get_preset("v3")
V2 = get_preset("v2")
LLAMA = get_preset("r1-distill-llama-8b")
DENSE_MLA = derive(
    get_preset("v2-lite-tiny"),
    **{
        name: ModelConfig.model_fields[name].default
        for name in (
            "n_routed_experts",
            "n_shared_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "first_k_dense_replace",
            "aux_loss_alpha",
        )
    },
)


def refusal(base: ModelConfig, **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        derive(base, **changes)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        # ranges
        (V3, {"hidden_size": 0}, "hidden_size"),
        (V3, {"num_hidden_layers": 10**6}, "num_hidden_layers"),
        (V3, {"vocab_size": 2**21}, "vocab_size"),
        (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        (V3, {"rope_theta": float("inf")}, "rope_theta"),
        (V3, {"eos_token_id": (1, 129_280)}, "eos_token_id = 129280: must be below vocab_size"),
        (V3, {"bos_token_id": 129_280}, "bos_token_id"),
        (V3, {"eos_token_id": ()}, "eos_token_id"),
        (V3, {"no_such_field": 1}, "no_such_field"),
        # latent attention
        (V3, {"kv_lora_rank": None}, "kv_lora_rank = None: latent attention needs"),
        (V3, {"qk_nope_head_dim": None}, "qk_nope_head_dim = None"),
        (V3, {"v_head_dim": None}, "v_head_dim = None"),
        (V3, {"v_head_dim": 193}, "v_head_dim = 193: must be at most"),
        (V3, {"num_key_value_heads": 64}, "num_key_value_heads = 64"),
        (V3, {"head_dim": 64}, "head_dim = 64: has no effect with latent attention"),
        (V3, {"attention_bias": True}, "attention_bias = True: latent attention with biases"),
        (V3, {"rope_theta": 1.0}, "rope_theta"),
        (V3, {"qkv_bias": True}, "qkv_bias"),
        (V3, {"qk_norm": True}, "qk_norm"),
        # grouped attention
        (LLAMA, {"head_dim": None}, "head_dim = None"),
        (LLAMA, {"head_dim": 65}, "head_dim = 65"),
        (LLAMA, {"num_key_value_heads": 5}, "num_key_value_heads = 5: must divide"),
        (LLAMA, {"kv_lora_rank": 8}, "kv_lora_rank = 8: has no effect with grouped attention"),
        (LLAMA, {"q_lora_rank": 8}, "q_lora_rank"),
        (LLAMA, {"attention_bias": True, "qkv_bias": True}, "qkv_bias = True: has no effect"),
        # experts
        (V3, {"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        (V3, {"moe_intermediate_size": 0}, "moe_intermediate_size = 0"),
        (V3, {"num_experts_per_tok": 257}, "num_experts_per_tok = 257: must be at most"),
        (V2, {"first_k_dense_replace": 60}, "first_k_dense_replace = 60: leaves no expert layer"),
        (LLAMA, {"n_shared_experts": 1}, "n_shared_experts = 1: has no effect without"),
        (LLAMA, {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        (LLAMA, {"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
        (LLAMA, {"first_k_dense_replace": 1}, "first_k_dense_replace"),
        # gates
        (V3, {"n_group": 7}, "n_group = 7: must divide"),
        (V3, {"topk_group": 9}, "topk_group = 9: must be at most n_group = 8"),
        (V3, {"scoring_func": "softmax"}, "scoring_func = softmax"),
        (V2, {"scoring_func": "sigmoid"}, "scoring_func = sigmoid"),
        (V3, {"n_group": 256, "topk_group": 8}, "n_group = 256: must be at most 128"),
        (V3, {"num_experts_per_tok": 129}, "must be at most 128, the experts of topk_group"),
        (V2, {"num_experts_per_tok": 61}, "must be at most 60, the experts of topk_group"),
        (V2, {"topk_method": "greedy"}, "n_group = 8: has no effect with topk_method greedy"),
        (V2, {"norm_topk_prob": True}, "routed_scaling_factor = 16.0: has no effect"),
        (
            V2,
            {"topk_method": "topk", "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
            "norm_topk_prob = True: has no effect",
        ),
        # balance losses
        (V3, {"aux_loss_alpha": 0.0, "seq_aux": False}, "seq_aux = False: has no effect"),
        (get_preset("v2-lite"), {"device_loss_alpha": 0.1}, "device_loss_alpha = 0.1"),
        (get_preset("v2-lite"), {"communication_loss_alpha": 0.1}, "communication_loss_alpha"),
        (get_preset("v2-lite"), {"capacity_factor": 1.0}, "capacity_factor = 1.0"),
        # pattern
        (V3, {"sliding_window": 8}, "sliding_window = 8: has no effect with pattern causal"),
        (V3, {"attention_sinks": 4}, "attention_sinks = 4"),
        (V3, {"pattern": "sliding_window"}, "sliding_window = None"),
    ],
)
def test_a_config_that_cannot_work_names_the_field(
    base: ModelConfig, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(base, **changes)


@pytest.mark.parametrize("base", [V3, V2, LLAMA, DENSE_MLA, get_preset("v2-lite-tiny")])
def test_a_setting_at_its_default_is_never_refused(base: ModelConfig) -> None:
    """Every field may be written out with the value it has anyway."""
    for name, field in ModelConfig.model_fields.items():
        if not field.is_required() and getattr(base, name) == field.default:
            assert derive(base, **{name: field.default}) == base


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 32},
        {"attention_bias": True},
        {"qkv_bias": True, "qk_norm": True},
        {"pattern": "sliding_window", "sliding_window": 8, "attention_sinks": 4},
        {"num_nextn_predict_layers": 2},
        {"eos_token_id": (1, 2)},
    ],
)
def test_settings_that_have_an_effect_are_taken(changes: dict[str, Any]) -> None:
    config = derive(LLAMA, **changes)
    assert {name: getattr(config, name) for name in changes} == changes


def test_greedy_gates_take_groups_as_devices_of_the_balance_losses() -> None:
    assert derive(get_preset("v2-lite"), n_group=8, device_loss_alpha=0.05).n_group == 8


@pytest.mark.parametrize("name", ["mscale", "mscale_all_dim"])
def test_yarn_needs_both_temperatures_or_neither(name: str) -> None:
    # transformers and the published code disagree about one alone.
    with pytest.raises(ValidationError, match=f"{name} = 0.7: give mscale and mscale_all_dim"):
        YarnScaling(factor=4, original_max_position_embeddings=64, **{name: 0.7})


def test_bands_of_rope_scaling_are_in_order() -> None:
    with pytest.raises(ValidationError, match="beta_slow = 32"):
        YarnScaling(factor=4, original_max_position_embeddings=64, beta_slow=32)
    with pytest.raises(ValidationError, match="low_freq_factor = 4"):
        Llama3Scaling(
            factor=8, original_max_position_embeddings=64, low_freq_factor=4, high_freq_factor=4
        )


@pytest.mark.parametrize(
    ("base", "scale"),
    [
        (V3, 0.1352337789),  # facts computed with transformers
        (V2, 0.1147213868),
        (derive(V3, rope_scaling=None), 192**-0.5),
        (LLAMA, 128**-0.5),
    ],
)
def test_softmax_scale_has_the_squared_temperature(base: ModelConfig, scale: float) -> None:
    assert base.softmax_scale == pytest.approx(scale, rel=1e-9)


def test_grouped_attention_keeps_yarn_out_of_the_softmax() -> None:
    yarn = YarnScaling(
        factor=40, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0
    )
    assert derive(LLAMA, rope_scaling=yarn).softmax_scale == LLAMA.softmax_scale


def test_cache_holds_one_row_for_latent_and_two_for_grouped_attention() -> None:
    assert {spec.widths for spec in cache_specs(V3)} == {(576,)}
    assert {spec.widths for spec in cache_specs(LLAMA)} == {(1024, 1024)}
    assert (V3.q_head_dim, LLAMA.q_head_dim) == (192, 128)


def test_eos_is_a_tuple_however_it_is_written() -> None:
    assert V3.eos_token_ids == (1,)
    assert derive(V3, eos_token_id=(1, 5)).eos_token_ids == (1, 5)
    assert derive(V3, eos_token_id=None).eos_token_ids == ()


def test_expert_layers_follow_the_published_rule() -> None:
    config = derive(V3, num_hidden_layers=8, first_k_dense_replace=3, moe_layer_freq=2)
    trunk = [config.is_expert_layer(index) for index in range(8)]
    assert trunk == [False, False, False, False, True, False, True, False]
    # The layer past the trunk is the MTP one: it routes whatever the frequency says.
    assert derive(config, num_hidden_layers=9).is_expert_layer(9)
    assert not DENSE_MLA.is_expert_layer(0)
