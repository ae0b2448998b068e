import pytest

from ziphius.core.errors import ConfigError
from ziphius.models.cost import count_parameters
from ziphius.models.presets import PRESETS, derive, get_preset

TINY = [name for name in PRESETS if name.endswith("-tiny")]


@pytest.mark.parametrize("name", TINY)
def test_tiny_is_tiny(name: str) -> None:
    counts = count_parameters(PRESETS[name])
    assert counts.main + counts.mtp < 300_000
    assert PRESETS[name].vocab_size == 512


def test_tiny_models_take_every_branch() -> None:
    tiny = [PRESETS[name] for name in TINY]
    v3 = get_preset("v3-tiny")
    layers = [v3.is_expert_layer(index) for index in range(v3.num_hidden_layers)]
    assert set(layers) == {False, True}
    assert v3.num_nextn_predict_layers == 1
    for routed in (v3, get_preset("v2-tiny")):
        assert 1 < routed.topk_group < routed.n_group
        assert routed.n_routed_experts // routed.n_group > 1
        # A real choice inside the groups that were kept.
        kept = routed.topk_group * routed.n_routed_experts // routed.n_group
        assert routed.num_experts_per_tok < kept
        assert routed.q_lora_rank is not None
    assert get_preset("v2-lite-tiny").q_lora_rank is None
    assert {config.topk_method for config in tiny} >= {"greedy", "group_limited_greedy", "noaux_tc"}
    scalings = {config.rope_scaling and config.rope_scaling.type for config in tiny}
    assert scalings == {None, "yarn", "linear", "llama3"}
    assert {config.model_type for config in tiny} == {
        "deepseek_v2",
        "deepseek_v3",
        "llama",
        "qwen2",
        "qwen3",
    }
    qwen3 = get_preset("qwen3-tiny")
    assert qwen3.tie_word_embeddings
    assert qwen3.q_head_dim * qwen3.num_attention_heads != qwen3.hidden_size
    assert any(config.num_key_value_heads < config.num_attention_heads for config in tiny)


@pytest.mark.parametrize("make", ["v2", "v3", "dense"])
@pytest.mark.parametrize(("size", "vocabulary"), [(1, 4_096), (3, 8_192), (10, 16_384)])
def test_small_models_have_the_size_in_their_name(make: str, size: int, vocabulary: int) -> None:
    config = get_preset(f"{make}-{size}m")
    active = count_parameters(config).active_trunk
    assert active == pytest.approx(size * 1e6, rel=0.15)
    assert config.vocab_size == vocabulary
    for width in (config.hidden_size, config.intermediate_size, config.moe_intermediate_size):
        assert width % 64 == 0
    if make != "dense":
        assert config.n_shared_experts >= 1
        assert config.n_group > config.topk_group
    assert config.num_nextn_predict_layers == (make == "v3")


def test_small_v2_and_v3_cost_a_token_the_same() -> None:
    for size in ("1m", "3m", "10m"):
        v2, v3 = (count_parameters(get_preset(f"{make}-{size}")) for make in ("v2", "v3"))
        assert v2.active_trunk == v3.active_trunk


def test_names_of_one_architecture_share_one_config() -> None:
    assert PRESETS["r1"] is PRESETS["r1-zero"] is PRESETS["v3.1"] is PRESETS["v3"]
    assert PRESETS["v2.5"] is PRESETS["coder-v2"] is PRESETS["v2"]


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"'v9'.* v2, .*v3-tiny.*qwen3-tiny"):
        get_preset("v9")


def test_derived_configs_are_checked() -> None:
    with pytest.raises(ValueError, match="n_group"):
        derive(PRESETS["v3"], n_group=7)


def test_v2_and_v3_start_from_the_papers_deviation() -> None:
    for name in ("v2", "v2-lite", "v3"):
        assert PRESETS[name].initializer_range == 0.006
