import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ziphius.core.errors import ConfigError
from ziphius.models.config import ModelConfig
from ziphius.models.cost import Dtype, activation_bytes, count_parameters, model_cost
from ziphius.models.losses import mtp_loss_mean, mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.models.patterns import Tokens, build_pattern, visibility_mask
from ziphius.models.presets import PRESETS, derive, get_preset
from ziphius.models.sequences import Sequences
from ziphius.ops import experts, native

TINY = [name for name in PRESETS if name.endswith("-tiny")]


def built(config: ModelConfig) -> Model:
    model = Model(config)
    model.initialize(seed=0)
    return model


def product_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of matrix products, attention's scores and sums left out."""
    grouped = {torch.ops.aten._grouped_mm: _grouped_flops}  # PyTorch counts none for these
    with FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "mm" in str(op))


def _grouped_flops(rows: list[int], weights: list[int], *_: object, **__: object) -> int:
    return 2 * rows[0] * rows[1] * weights[-1]


def attention_flops(config: ModelConfig, *, expanded: bool) -> int:
    """Per token and visible key, all layers."""
    if config.attention == "mla" and not expanded:
        width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    else:
        width = config.q_head_dim + (config.v_head_dim or config.q_head_dim)
    return 2 * config.num_attention_heads * width * config.num_hidden_layers


def test_bench_model_costs_what_was_measured() -> None:
    config = get_preset("bench-v3")
    counts, flops = count_parameters(config), model_cost(config, context=256).flops
    assert counts.main == 11_645_120
    forward = flops.training / 3
    assert forward == pytest.approx(9.9e6, rel=0.005)
    assert flops.training * 8 * 256 == pytest.approx(60.7e9, rel=0.001)
    # Products per token: 4.7M parameters, every one of which multiplies once.
    assert forward - 128.5 * attention_flops(config, expanded=True) == 2 * 4_694_016


def test_v3_training_costs_250_gflop_a_token() -> None:
    # ISCA 2025 (arXiv 2505.09343): 250 GFLOP per token at 4K, causal, without MTP.
    assert model_cost(get_preset("v3"), context=4096).flops.training == pytest.approx(250.4e9, 1e-3)


@pytest.fixture
def plain_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run experts without their kernel: what it multiplies and allocates, PyTorch cannot count."""
    monkeypatch.setattr(
        experts, "native", SimpleNamespace(serves=lambda *tensors: False, apply=native.apply)
    )


@pytest.mark.usefixtures("plain_experts")
@pytest.mark.parametrize("name", TINY)
def test_products_are_those_the_model_computes(name: str) -> None:
    config = get_preset(name)
    model = built(config).eval()
    tokens = 4
    ids = torch.arange(tokens)[None]
    flops = model_cost(config, context=1).flops
    with torch.inference_mode():
        forward = product_flops(lambda: model.logits(model(ids).hidden_BTD))
    counted = flops.training // 3 - attention_flops(config, expanded=True)
    assert forward == tokens * counted
    assert flops.prefill == counted + attention_flops(config, expanded=True)


@pytest.mark.usefixtures("plain_experts")
@pytest.mark.parametrize("name", TINY)
def test_decoding_costs_what_the_cached_model_computes(name: str) -> None:
    config = get_preset(name)
    model = built(config).eval()
    held = 40
    sequences = Sequences(model, 1, held)
    with torch.inference_mode():
        model(sequences.rows(torch.arange(held - 1)[None]))
        step = sequences.rows(torch.tensor([[7]]))
        forward = product_flops(lambda: model.logits(model(step).hidden_BTD))
    decode = model_cost(config, context=held).flops.decode
    assert decode - held * attention_flops(config, expanded=False) == forward


@pytest.mark.usefixtures("plain_experts")
def test_further_tokens_cost_a_layer_a_projection_and_a_head_each() -> None:
    config = get_preset("v3-tiny")
    model = built(config).eval()
    ids = torch.arange(4)[None]
    with torch.inference_mode():
        output = model(ids)
        forward = product_flops(
            lambda: [model.logits(hidden) for hidden in model.predict_mtp(output, ids)]
        )
    one_layer = attention_flops(config, expanded=True) // config.num_hidden_layers
    assert forward == 4 * (model_cost(config, context=1).flops.training_mtp // 3 - one_layer)
    twice = model_cost(derive(config, num_nextn_predict_layers=2), context=1).flops
    assert twice.training_mtp == 2 * model_cost(config, context=1).flops.training_mtp


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (5, 0), (5, 3), (30, 0)])
def test_attention_is_counted_over_the_keys_a_query_sees(window: int | None, sinks: int) -> None:
    config = get_preset("r1-distill-llama-tiny")
    if window is not None:
        config = derive(
            config, pattern="sliding_window", sliding_window=window, attention_sinks=sinks
        )
    context = 20
    tokens = Tokens(torch.arange(context)[None])
    seen_T = visibility_mask(build_pattern(config), tokens, tokens).sum(-1)[0]
    flops, single = (model_cost(config, context=size).flops for size in (context, 1))
    per_key = attention_flops(config, expanded=True)
    further_keys = seen_T.double().mean().item() - 1
    assert flops.training - single.training == pytest.approx(3 * per_key * further_keys, abs=0.6)
    assert flops.decode - single.decode == per_key * (int(seen_T[-1]) - 1)


def test_prefill_needs_the_head_once() -> None:
    config = get_preset("dense-1m")
    head = 2 * config.vocab_size * config.hidden_size
    flops = model_cost(config, context=64).flops
    assert flops.training / 3 - flops.prefill == pytest.approx(head * 63 / 64)


@pytest.mark.parametrize(("name", "size"), [("v3", 70_272), ("v2", 69_120), ("v2-lite", 31_104)])
def test_published_cache_bytes(name: str, size: int) -> None:
    assert model_cost(get_preset(name)).cache_bytes.own == size


def test_cache_against_other_attention() -> None:
    # DeepSeek-V2, table 1, with 128 heads of 128 in 60 layers of bfloat16.
    cache = model_cost(get_preset("v2")).cache_bytes
    assert cache.mha == 2 * 128 * 128 * 60 * 2
    assert cache.gqa == cache.mha * 8 // 128
    assert cache.mqa == cache.mha // 128
    few_heads = model_cost(get_preset("v3-tiny"), context=1).cache_bytes
    assert few_heads.gqa == few_heads.mha
    coder = model_cost(get_preset("coder-33b"), dtype="float32").cache_bytes
    assert coder.own == coder.gqa == 2 * model_cost(get_preset("coder-33b")).cache_bytes.own


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_served_bytes_are_those_of_the_tensors(name: str, dtype: Dtype) -> None:
    config = get_preset(name)
    memory = model_cost(config, batch=3, context=50, dtype=dtype).memory
    model = built(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    tensors = [*model.parameters(), *model.buffers()]
    assert memory.weights == sum(tensor.nbytes for tensor in tensors)
    assert memory.cache == Sequences(model, 3, 50).cache.size_bytes
    assert memory.serve == memory.weights + memory.cache + memory.working


def peak_bytes(run: Callable[[], object]) -> int:
    """Follow the allocations of a run to their highest sum."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda it: it[0])))


@pytest.mark.usefixtures("plain_experts")
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_working_set_is_what_a_prefill_allocates(name: str, dtype: Dtype) -> None:
    config, torch_dtype = get_preset(name), getattr(torch, dtype)
    model = built(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch_dtype)
    batch, context = 8, 256
    ids = torch.arange(context).expand(batch, -1)

    @torch.inference_mode()
    def prefill() -> None:
        output = model(Sequences(model, batch, context).rows(ids))
        model.logits(output.wanted_LD).float()

    memory = model_cost(config, batch=batch, context=context, dtype=dtype).memory
    # Attention in bfloat16 copies keys and values for matrix units; a CPU without them does not.
    above = 1.3 if dtype == "bfloat16" else 1.12
    peak = peak_bytes(prefill)  # the cache is no allocation of PyTorch's
    whole = memory.cache + peak
    assert whole / 1.12 <= memory.cache + memory.working <= above * whole


def test_training_holds_masters_gradients_and_two_moments() -> None:
    config = get_preset("v3-tiny")
    model = built(config)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    memory = model_cost(config, context=64, dtype="float32").memory
    assert memory.masters == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert memory.gradients == sum(parameter.nbytes for parameter in model.parameters())
    moments = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    ]
    assert memory.moments == sum(moment.nbytes for moment in moments)
    parts = (
        memory.masters,
        memory.gradients,
        memory.moments,
        memory.activations,
        memory.runtime,
    )
    assert memory.train == sum(parts)
    copies = model_cost(config, context=64, dtype="bfloat16").memory.masters - memory.masters
    copied = (p.numel() for name, p in model.named_parameters() if ".experts." not in name)
    assert copies == 2 * sum(copied)


def kept_bytes(model: Model, rows: int, size: int) -> int:
    """Add up what autograd keeps of a forward pass and its losses, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding them keeps their addresses from being used again

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, 128), generator=generator)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=size == 2),
    ):
        output = model(ids)
        loss = next_token_loss(model, output, ids).mean
        if model.config.num_nextn_predict_layers:
            loss = loss + mtp_loss_mean(mtp_losses(model, output, ids))
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in weights
    )


def kept_bytes_per_token(config: ModelConfig, size: int) -> float:
    """Take the difference of two batches: copies of weights and fixed padding drop out."""
    model = built(config).train()
    return (kept_bytes(model, 8, size) - kept_bytes(model, 4, size)) / (4 * 128)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [4, 2])
def test_activations_are_what_autograd_keeps(name: str, size: int) -> None:
    config = get_preset(name)
    kept = kept_bytes_per_token(config, size)
    assert activation_bytes(config, size) == pytest.approx(kept, rel=0.1)


def test_activations_of_further_depths_are_what_autograd_keeps() -> None:
    one, three = (derive(get_preset("v3-tiny"), num_nextn_predict_layers=n) for n in (1, 3))
    kept = kept_bytes_per_token(three, 4) - kept_bytes_per_token(one, 4)
    assert activation_bytes(three, 4) - activation_bytes(one, 4) == pytest.approx(kept, rel=0.1)


def test_batch_and_context_have_limits() -> None:
    config = get_preset("v3-tiny")
    with pytest.raises(ConfigError, match="batch = 0"):
        model_cost(config, batch=0, context=8)
    with pytest.raises(ConfigError, match="context = 0"):
        model_cost(config, context=0)
    with pytest.raises(ConfigError, match=r"context = 2049: the model reaches 2,048 tokens"):
        model_cost(config, context=2049)


def test_memory_grows_with_batch_and_context_alike() -> None:
    config = get_preset("v3-tiny")
    wide, long = model_cost(config, batch=8, context=64), model_cost(config, batch=4, context=128)
    assert wide.memory.cache == long.memory.cache
    assert wide.memory.activations == long.memory.activations
    assert wide.memory.cache == 8 * model_cost(config, batch=1, context=64).memory.cache
