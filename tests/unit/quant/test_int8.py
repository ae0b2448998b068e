"""`quant/int8.py`: what becomes INT8 and what does not, that products are INT8, sizes, errors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import build, feed, grouped_config, latent_config, random_ids
from tests.unit.models.weights.files import v3_config
from ziphius.core.errors import CheckpointError, ConfigError, DeviceError
from ziphius.models.int8 import Int8Experts, Int8Layer, Int8Linear
from ziphius.models.losses import next_token_loss
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.models.sequences import Sequences
from ziphius.ops.int8 import quantize_rows
from ziphius.quant.int8 import quantize, size_bytes

CONFIGS = pytest.mark.parametrize(
    "config",
    [grouped_config(qkv_bias=True, model_type="qwen2"), v3_config(), latent_config()],
    ids=["qwen2", "v3", "dense mla"],
)


def logits(model: Model, ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids_BT).hidden_BTD)


def test_what_is_quantized_and_what_stays_float() -> None:
    model = build(v3_config())
    sizes = quantize(model)
    int8 = {name for name, module in model.named_modules() if isinstance(module, Int8Layer)}
    assert set(sizes.layers) == int8
    assert {name.rpartition(".")[2] for name in int8} == {
        *("lm_head", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "eh_proj"),
        *("gate_proj", "up_proj", "down_proj", "experts"),
    }
    left = {name.removesuffix(".weight").rpartition(".")[2] for name, _ in model.named_parameters()}
    assert left == {
        *("embed_tokens", "kv_b_proj", "gate", "norm", "enorm", "hnorm"),
        *("input_layernorm", "post_attention_layernorm", "q_a_layernorm", "kv_a_layernorm"),
    }
    for name, buffer in model.named_buffers():
        kinds = {"weight": torch.int8, "_proj": torch.int8}
        wanted = next((kind for end, kind in kinds.items() if name.endswith(end)), torch.float32)
        assert buffer.dtype == wanted, name


def test_a_tied_head_stays_with_its_embedding() -> None:
    model = build(grouped_config(tie_word_embeddings=True))
    assert "lm_head" not in quantize(model).layers
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_head_can_stay_float() -> None:
    model = build(grouped_config())
    assert "lm_head" not in quantize(model, head=False).layers
    assert isinstance(model.lm_head, nn.Linear)


@CONFIGS
def test_every_product_is_one_of_integers(config: Any) -> None:
    """Each projection gives, to the bit, the int64 product of what is stored and what comes in."""
    model = build(config)
    quantize(model)
    seen = set()

    def check(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(layer, Int8Linear)
        numbers, scale = layer.kept("weight")
        rows, steps = quantize_rows(inputs[0].flatten(0, -2))
        sums = (rows.long()[:, None] * numbers.long()).sum(-1)
        expected = sums.float() * (steps * scale.t())
        if layer.bias is not None:
            assert torch.allclose(out.flatten(0, -2), expected + layer.bias, atol=1e-5)
        else:
            assert torch.equal(out.flatten(0, -2), expected)
        seen.add(layer)

    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    for layer in layers:
        layer.register_forward_hook(check)
    ids_BT = random_ids(2, 9, 61)
    with torch.no_grad():
        output = model(ids_BT)
        model.logits(output.hidden_BTD)
        model.predict_mtp(output, ids_BT)
    assert seen == set(layers)


@CONFIGS
def test_the_model_says_almost_what_it_said(config: Any) -> None:
    """Weights of order 1 in tiny layers; changed routes are why experts are further off."""
    model, ids_BT = build(config), random_ids(4, 16, 61)
    quantized = copy.deepcopy(model)
    quantize(quantized)
    before, after = logits(model, ids_BT), logits(quantized, ids_BT)
    error = (after - before).norm() / before.norm()
    assert 0.001 < error < (0.3 if config.n_routed_experts else 0.05)


def test_the_experts_of_a_layer_are_quantized_one_by_one() -> None:
    model = build(v3_config())
    before = model.model.layers[1].mlp.experts
    quantize(model)
    after = model.model.layers[1].mlp.experts
    assert isinstance(after, Int8Experts)
    for name in ("gate_up_proj", "down_proj"):
        numbers, scale = after.kept(name)
        weight = getattr(before, name).detach()
        assert numbers.shape == weight.shape
        assert scale.shape == (*weight.shape[:-1], 1)
        assert ((numbers * scale - weight).abs() <= 0.5001 * scale).all()
        assert (numbers.abs().amax(-1) == 127).all()


@CONFIGS
def test_decoding_from_a_cache_is_the_pass_without_one(config: Any) -> None:
    model = build(config)
    quantize(model)
    ids_BT = random_ids(2, 12, 61)
    whole = logits(model, ids_BT)
    sequences = Sequences(model, 2, 12)
    with torch.no_grad():
        steps = [model.logits(feed(model, sequences, ids_B1)) for ids_B1 in ids_BT.split(1, 1)]
    # An activation at the border of two numbers may fall to either side: a step, not a rounding.
    difference = (torch.cat(steps, dim=1) - whole).norm() / whole.norm()
    assert difference < (0.2 if config.n_routed_experts else 0.02)


def test_sizes_are_as_computed() -> None:
    model = build(grouped_config())
    sizes = quantize(model)
    hidden, wide, layers, vocabulary = 24, 32, 2, 61
    rows_columns = [(48, 24), (16, 24), (16, 24), (24, 48), (wide, 24), (wide, 24), (24, wide)]
    matrices = layers * sum(rows * columns for rows, columns in rows_columns) + vocabulary * hidden
    rows = layers * sum(rows for rows, _ in rows_columns) + vocabulary
    floats = vocabulary * hidden + (2 * layers + 1) * hidden
    assert sizes.before_bytes == 4 * (matrices + floats)
    assert sizes.after_bytes == matrices + 4 * rows + 4 * floats == size_bytes(model)
    assert sizes.share == sizes.after_bytes / sizes.before_bytes


def test_a_large_model_is_little_more_than_a_quarter() -> None:
    model = Model(get_preset("bench-v3"))
    model.initialize(seed=0)
    assert 0.25 < quantize(model).share < 0.34


def test_losses_are_those_of_the_numbers() -> None:
    """The loss on text takes the head as a float matrix: the one that its numbers stand for."""
    model, ids_BT = build(grouped_config()), random_ids(2, 16, 61)
    quantize(model)
    with torch.no_grad():
        output = model(ids_BT)
        loss = next_token_loss(model, output, ids_BT).mean
        numbers, scale = model.lm_head.kept("weight")
        logits_BTW = output.hidden_BTD @ (numbers * scale).t()
    expected = nn.functional.cross_entropy(
        logits_BTW[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    )
    assert torch.allclose(loss, expected, atol=1e-4)


def test_scales_are_not_rounded_with_the_model() -> None:
    model = build(v3_config())
    quantize(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert logits(model, random_ids(1, 5, 61)).dtype == torch.bfloat16


def test_an_int8_model_is_frozen_and_cannot_be_trained_or_quantized_again() -> None:
    model = build(grouped_config()).train()
    quantize(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    with pytest.raises(ConfigError, match="train the model they were made from"):
        model(random_ids(1, 4, 61))
    with pytest.raises(ConfigError, match="INT8 already"):
        quantize(model)


def test_broken_weights_are_named_and_nothing_is_changed() -> None:
    model = build(grouped_config())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or inf"):
        quantize(model)
    assert not any(isinstance(module, Int8Layer) for module in model.modules())


def test_other_devices_are_refused() -> None:
    with torch.device("meta"):
        model = Model(grouped_config())
    with pytest.raises(DeviceError, match="on meta: move it first"):
        quantize(model)
