"""Published parameter counts, by the formula and by building the model on the meta device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.models.config import ModelConfig
from ziphius.models.cost import count_parameters
from ziphius.models.model import Model
from ziphius.models.presets import PRESETS, get_preset

MAIN = {
    "v2": 235_741_434_880,
    "v2-lite": 15_706_484_224,
    "v3": 671_026_404_352,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-llama-70b": 70_553_706_496,
    "coder-6.7b": 6_740_512_768,
}

# Names that share a config are counted once.
UNIQUE = {id(config): name for name, config in PRESETS.items()}.values()


def build(config: ModelConfig) -> Model:
    with torch.device("meta"):
        return Model(config)


def size(model: torch.nn.Module, prefix: str = "") -> int:
    named = model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if name.startswith(prefix))


def assert_formula_counts(config: ModelConfig) -> None:
    """Hold every part of the formula to the model's own tensors."""
    model, counts = build(config), count_parameters(config)
    layers = [f"model.layers.{index}." for index in range(config.num_hidden_layers)]
    mtp_layers = range(config.num_hidden_layers, len(model.model.layers))
    assert counts.mtp == sum(size(model, f"model.layers.{index}.") for index in mtp_layers)
    assert counts.main == size(model) - counts.mtp
    assert counts.embedding == size(model, "model.embed_tokens")
    assert counts.head == (0 if config.tie_word_embeddings else size(model, "lm_head"))
    assert counts.attention == sum(size(model, layer + "self_attn") for layer in layers)
    assert counts.routed_experts == sum(size(model, layer + "mlp.experts") for layer in layers)
    shared = sum(size(model, layer + "mlp.shared_experts") for layer in layers)
    assert counts.shared_experts == shared
    assert counts.routers == sum(size(model, layer + "mlp.gate.") for layer in layers)
    norms = size(model, "model.norm") + sum(
        size(model, layer + part)
        for layer in layers
        for part in ("input_layernorm", "post_attention_layernorm")
    )
    assert counts.norms == norms
    assert counts.router_biases == sum(buffer.numel() for buffer in model.buffers())


@pytest.mark.parametrize("name", UNIQUE)
def test_the_formula_counts_what_the_model_holds(name: str) -> None:
    assert_formula_counts(PRESETS[name])


@pytest.mark.parametrize(("name", "parameters"), MAIN.items())
def test_published_counts(name: str, parameters: int) -> None:
    counts = count_parameters(get_preset(name))
    assert counts.main == parameters
    assert size(build(get_preset(name))) - counts.mtp == parameters


def test_v3_part_by_part() -> None:
    counts, model = count_parameters(get_preset("v3")), build(get_preset("v3"))
    # README_WEIGHTS rounds it to 11.5B.
    assert counts.mtp == 11_610_067_968
    assert round(counts.mtp_active / 1e9, 3) == 0.688
    # 58 layers have 14,848 biases; the MTP layer adds 256.
    assert counts.router_biases == 14_848 + 256
    norms = size(model, "model.layers.5.input_") + size(model, "model.layers.5.post_")
    assert size(model, "model.layers.5.self_attn") + norms == 187_121_664
    assert counts.routed_experts == 58 * 256 * 44_040_192
    assert counts.dense_layers == 3 * 396_361_728
    assert counts.routers == 58 * 1_835_008


def test_v2_part_by_part() -> None:
    for name, attention, expert in (
        ("v2", 149_237_760, 23_592_960),
        ("v2-lite", 13_767_168, 8_650_752),
    ):
        config, counts = get_preset(name), count_parameters(get_preset(name))
        layers, experts = config.num_hidden_layers, config.n_routed_experts
        assert counts.attention == layers * (attention - 2 * config.hidden_size)
        assert counts.routed_experts == (layers - 1) * experts * expert


@pytest.mark.parametrize(
    ("name", "with_both", "with_head", "trunk"),
    [
        ("v2", 21.376, 20.852, 20.327),
        ("v2-lite", 2.661, 2.451, 2.242),
        ("v3", 37.552, 36.626, 35.699),
    ],
)
def test_published_active_counts(
    name: str, with_both: float, with_head: float, trunk: float
) -> None:
    counts = count_parameters(get_preset(name))
    assert round(counts.active / 1e9, 3) == with_both
    assert round(counts.active_without_embedding / 1e9, 3) == with_head
    assert round(counts.active_trunk / 1e9, 3) == trunk


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Draw any valid architecture, small numbers, all branches."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    layers, heads = number(1, 4), number(1, 4)
    fields = {
        "model_type": "deepseek_v3",
        "vocab_size": number(1, 50),
        "hidden_size": number(1, 40),
        "num_hidden_layers": layers,
        "intermediate_size": number(1, 40),
        "num_attention_heads": heads,
        "tie_word_embeddings": draw(st.booleans()),
        "num_nextn_predict_layers": number(0, 2),
    }
    if draw(st.booleans()):
        rope = 2 * number(1, 4)
        nope = number(1, 9)
        fields |= {
            "attention": "mla",
            "num_key_value_heads": heads,
            "q_lora_rank": draw(st.none() | st.integers(1, 20)),
            "kv_lora_rank": number(1, 20),
            "qk_nope_head_dim": nope,
            "qk_rope_head_dim": rope,
            "v_head_dim": number(1, nope + rope),
        }
    else:
        biases = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
        fields |= {
            "attention": "gqa",
            "num_key_value_heads": draw(
                st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])
            ),
            "head_dim": 2 * number(1, 8),
            "attention_bias": biases[0],
            "qkv_bias": biases[1],
            "qk_norm": draw(st.booleans()),
        }
    if draw(st.booleans()):
        fields |= draw(experts(layers))
    return ModelConfig.model_validate(fields)


@st.composite
def experts(draw: st.DrawFn, layers: int) -> dict[str, object]:
    method = draw(st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc", "topk"]))
    grouped = method in ("group_limited_greedy", "noaux_tc")
    groups = draw(st.integers(1, 4)) if grouped else 1
    kept = draw(st.integers(1, groups))
    per_group = draw(st.integers(2, 4))
    return {
        "n_routed_experts": groups * per_group,
        "n_shared_experts": draw(st.integers(0, 2)),
        "num_experts_per_tok": draw(st.integers(1, kept * per_group)),
        "moe_intermediate_size": draw(st.integers(1, 20)),
        "first_k_dense_replace": draw(st.integers(0, layers - 1)),
        "topk_method": method,
        "scoring_func": "sigmoid" if method == "noaux_tc" else "softmax",
        "n_group": groups,
        "topk_group": kept,
    }


@settings(max_examples=150, deadline=None)
@given(configs())
def test_the_formula_counts_any_model(config: ModelConfig) -> None:
    assert_formula_counts(config)
