from dataclasses import replace
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from tests.tiny import V3_EXPERTS, build, feed, grouped_config, latent_config, random_ids
from ziphius.models.attention import ATTENTION
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.gates import GATES
from ziphius.models.heads import HEADS
from ziphius.models.model import Model
from ziphius.models.patterns import PATTERNS
from ziphius.models.sequences import Sequences

V3 = latent_config(num_nextn_predict_layers=1, **V3_EXPERTS)
CONFIGS = {
    "v3": V3,
    "biased": grouped_config(attention_bias=True, tie_word_embeddings=True),
    "normed": grouped_config(model_type="qwen3", qk_norm=True),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TABLES = {
    "attention": ATTENTION,
    "topk_method": GATES,
    "pattern": PATTERNS,
    "head": HEADS,
}


def initialized(config, seed):
    model = Model(config)
    model.initialize(seed)
    return model.state_dict()


@EVERY_CONFIG
def test_initialize_depends_on_the_seed_alone(config):
    torch.manual_seed(1)
    first = initialized(config, 7)
    torch.manual_seed(2)
    again = initialized(config, 7)
    other = initialized(config, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@EVERY_CONFIG
def test_building_and_initializing_leave_the_global_generator_alone(config):
    before = torch.get_rng_state()
    initialized(config, 7)
    assert torch.equal(torch.get_rng_state(), before)


@EVERY_CONFIG
def test_initialize_fills_every_tensor_by_its_kind(config):
    model = Model(config.model_copy(update={"initializer_range": 0.006}))
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    for buffer in model.buffers():
        buffer.zero_()
    model.initialize(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1:
            assert tensor.std().item() == pytest.approx(0.006, rel=0.25), name
            assert abs(tensor.mean().item()) < 0.001, name
        else:
            value = 0.0 if name.endswith("bias") else 1.0
            assert tensor.eq(value).all(), name


def test_a_bfloat16_model_is_the_rounded_float32_one():
    exact, rounded = Model(V3), Model(V3).bfloat16()
    exact.initialize(3)
    rounded.initialize(3)
    for name, tensor in exact.state_dict().items():
        assert torch.equal(rounded.state_dict()[name].float(), tensor.bfloat16().float()), name


def test_a_huge_model_is_built_on_meta_without_memory():
    config = latent_config(
        vocab_size=129_280,
        hidden_size=7_168,
        num_hidden_layers=4,
        num_nextn_predict_layers=1,
        **(V3_EXPERTS | {"n_routed_experts": 256, "moe_intermediate_size": 2_048}),
    )
    with torch.device("meta"):
        model = Model(config)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert sum(tensor.numel() for tensor in tensors) > 40e9


def test_a_model_from_meta_runs_once_it_is_filled():
    with torch.device("meta"):
        model = Model(V3)
    model.to_empty(device="cpu")
    expected = build(V3)
    model.load_state_dict(expected.state_dict(), strict=True)
    ids_BT = random_ids(2, 6, V3.vocab_size)
    with torch.no_grad():
        # nothing is kept outside the state dict: no rotary table that to_empty would lose
        assert torch.equal(model(ids_BT).hidden_BTD, expected(ids_BT).hidden_BTD)
    assert model.state_dict().keys() == {
        *dict(model.named_parameters()),
        *dict(model.named_buffers()),
    }


def test_tied_head_is_the_embedding_itself():
    tied = Model(grouped_config(tie_word_embeddings=True))
    free = Model(grouped_config())
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert free.lm_head.weight is not free.model.embed_tokens.weight
    assert (
        sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters())
        == tied.model.embed_tokens.weight.numel()
    )


def test_tied_weights_are_shared_again_after_to_empty():
    with torch.device("meta"):
        model = Model(grouped_config(tie_word_embeddings=True))
    model.to_empty(device="cpu")
    model.tie_weights()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model.initialize(0)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@EVERY_CONFIG
def test_names_are_those_of_published_checkpoints(config):
    names = set(Model(config).state_dict())
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= names
    layer = "model.layers.0."
    assert {f"{layer}input_layernorm.weight", f"{layer}mlp.gate_proj.weight"} <= names
    if config is V3:
        own = {name.removeprefix("model.layers.2.") for name in names if ".layers.2." in name}
        block = {name.removeprefix("model.layers.1.") for name in names if ".layers.1." in name}
        assert own - block == {
            "enorm.weight",
            "hnorm.weight",
            "eh_proj.weight",
            "shared_head.norm.weight",
        }
        assert block == {
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            *(
                f"self_attn.{name}.weight"
                for name in (
                    "q_a_proj",
                    "q_a_layernorm",
                    "q_b_proj",
                    "kv_a_proj_with_mqa",
                    "kv_a_layernorm",
                    "kv_b_proj",
                    "o_proj",
                )
            ),
            "mlp.gate.weight",
            "mlp.gate.e_score_correction_bias",
            "mlp.experts.gate_up_proj",
            "mlp.experts.down_proj",
            *(f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
        }


@EVERY_CONFIG
def test_default_positions_count_from_0_and_go_on_from_the_cache(config):
    model = build(config)
    ids_BT = random_ids(2, 6, config.vocab_size)
    positions_BT = torch.arange(6).expand(2, -1)
    with torch.no_grad():
        plain = model(ids_BT).hidden_BTD
        assert torch.equal(plain, model(ForwardBatch(ids_BT, positions_BT)).hidden_BTD)
        sequences = Sequences(model, 2, 6)
        feed(model, sequences, ids_BT[:, :4])
        batch = sequences.rows(ids_BT[:, 4:])
        by_default = model(batch).hidden_BTD
        stated = model(replace(batch, positions_BT=torch.tensor([[4, 5, 4, 5]]))).hidden_BTD
        assert torch.equal(by_default, stated)
        moved = model(ForwardBatch(ids_BT, positions_BT * 3)).hidden_BTD
    assert (moved - plain).abs().max() > 0.01


def test_what_a_token_says_depends_on_earlier_tokens_alone():
    model = build(V3)
    ids_BT = random_ids(1, 8, V3.vocab_size)
    other_BT = ids_BT.clone()
    other_BT[0, 5] = (other_BT[0, 5] + 1) % V3.vocab_size
    with torch.no_grad():
        difference_BTD = model(ids_BT).hidden_BTD - model(other_BT).hidden_BTD
    difference_T = difference_BTD.abs().amax(-1)[0]
    # not 0: a token that goes to another expert shifts the rows of the others' products
    assert difference_T[:5].lt(1e-5).all()
    assert difference_T[5:].gt(1e-2).all()


def test_logits_are_taken_where_they_are_asked_for():
    model = build(V3)
    hidden_BTD = model(random_ids(2, 5, V3.vocab_size)).hidden_BTD
    torch.testing.assert_close(
        model.logits(hidden_BTD[:, -1]), hidden_BTD[:, -1] @ model.lm_head.weight.T
    )


@pytest.mark.parametrize("field", TABLES)
def test_a_table_has_every_name_the_config_allows_and_the_error_lists_them(field):
    allowed = get_args(ModelConfig.model_fields[field].annotation)
    assert set(allowed) == set(TABLES[field])
    with pytest.raises(ValidationError) as raised:
        latent_config(**{field: "unheard-of"})
    (error,) = [e for e in raised.value.errors() if e["loc"] == (field,)]
    assert all(repr(name) in error["msg"] for name in allowed)


@pytest.mark.parametrize(
    "config", [V3, grouped_config(attention_bias=True, tie_word_embeddings=True)]
)
@torch.no_grad()
def test_initialize_leaves_nothing_as_it_was_found(config):
    expected = Model(config)
    expected.initialize(seed=3)
    with torch.device("meta"):
        model = Model(config)
    model.to_empty(device="cpu")
    # A vector of a kind that no module of today has.
    for each in (expected, model):
        each.model.register_parameter("sinks", torch.nn.Parameter(torch.empty(3)))
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(torch.nan)
    expected.initialize(seed=3)
    model.initialize(seed=3)
    wanted = expected.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.isfinite().all(), name
    assert (model.head.weight is model.model.embed_tokens.weight) == config.tie_word_embeddings


def test_padding_is_routed_nowhere_and_changes_nothing_else():
    model = build(V3)
    ids_BT = random_ids(2, 9, V3.vocab_size)
    documents_BT = torch.zeros(2, 9, dtype=torch.int64)
    documents_BT[:, 6:] = -1
    with torch.no_grad():
        padded = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
        alone = model(ForwardBatch(ids_BT[:, :6], documents_BT=documents_BT[:, :6]))
    torch.testing.assert_close(padded.hidden_BTD[:, :6], alone.hidden_BTD, atol=1e-5, rtol=0)
    for layer, routing in padded.routings.items():
        assert torch.equal(routing.counts(), alone.routings[layer].counts())
        assert routing.text_M is not None
        assert alone.routings[layer].text_M is None


def test_a_loop_of_ones_own_balances_its_experts_with_one_call():
    """Every expert that got more than its share sinks, in every layer that has such a gate."""
    model = build(latent_config(**V3_EXPERTS, num_nextn_predict_layers=1))
    output = model(random_ids(2, 12, 61))
    model.predict_mtp(output, random_ids(2, 12, 61))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.update_router_biases(output.expert_counts, rate=0.25)
    assert len(output.expert_counts) == len(before) > 1
    for layer, counts_E in output.expert_counts.items():
        name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        moved_E = dict(model.named_buffers())[name] - before[name]
        assert counts_E.sum() == 2 * 12 * model.config.num_experts_per_tok
        expected_E = 0.25 * (counts_E.float().mean() - counts_E).sign()
        assert torch.allclose(moved_E, expected_E, atol=1e-6)
        assert moved_E.abs().max() > 0
    plain = build(grouped_config())
    plain.update_router_biases(plain(random_ids(1, 4, 61)).expert_counts)
