import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.tiny import V3_EXPERTS, build, feed, grouped_config, latent_config, random_ids
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.models import weights
from ziphius.models.config import ModelConfig
from ziphius.models.lora import (
    LoraLinear,
    adapter_tensors,
    add_adapters,
    merge_adapters,
    projections,
)
from ziphius.models.lora_config import LoraConfig
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.models.sequences import Sequences
from ziphius.models.weights import save
from ziphius.models.weights.adapters import load_adapters, save_adapters

IDS_BT = random_ids(2, 12, 61)
CONFIGS = {
    "latent": latent_config(**V3_EXPERTS, num_nextn_predict_layers=1),
    "grouped": grouped_config(qkv_bias=True),
}


def logits(model: Model) -> torch.Tensor:
    output = model(IDS_BT)
    hidden = [output.hidden_BTD, *model.predict_mtp(output, IDS_BT)]
    return torch.stack([model.logits(states) for states in hidden])


def adapted(config: ModelConfig, **options: object) -> Model:
    """A model whose adapters are filled."""
    model = build(config)
    add_adapters(model, LoraConfig(**({"rank": 3, "alpha": 6.0} | options)), seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter_tensors(model).values():
        tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def test_fresh_adapters_change_nothing(config: ModelConfig) -> None:
    model = build(config)
    before = logits(model)
    add_adapters(model, LoraConfig(rank=3), seed=0)
    assert torch.equal(logits(model), before)


def test_only_adapters_are_trained_and_all_of_them(config: ModelConfig) -> None:
    model = adapted(config)
    logits(model).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(adapter_tensors(model))
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_merged_weights_equal_the_adapters(config: ModelConfig) -> None:
    model, plain = adapted(config), build(config)
    with_adapters = logits(model).detach()
    assert (with_adapters - logits(plain)).abs().max() > 0.1
    merge_adapters(model)
    difference = (logits(model) - with_adapters).abs().max()
    assert difference <= 1e-5 * with_adapters.abs().max()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_projection_is_the_same_function(config: ModelConfig) -> None:
    layers = [m for m in adapted(config).modules() if isinstance(m, LoraLinear)]
    assert len(layers) > 8
    for layer in layers:
        x_BD = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
        expected = layer(x_BD)
        difference = (F.linear(x_BD, layer.weight, layer.bias) - expected).abs().max()
        assert difference <= 1e-6 * expected.abs().max()


@torch.no_grad()
def test_a_frozen_weight_may_be_bfloat16() -> None:
    config = CONFIGS["grouped"]
    exact = logits(adapted(config))
    model = build(config).bfloat16()
    add_adapters(model, LoraConfig(rank=3, alpha=6.0), seed=0)
    for name, tensor in adapter_tensors(adapted(config)).items():
        adapter_tensors(model)[name].data.copy_(tensor)
        assert adapter_tensors(model)[name].dtype == torch.float32
    assert (logits(model) - exact).abs().max() < 0.1 * exact.abs().max()
    merge_adapters(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_product_is_scaled_by_alpha_over_rank() -> None:
    model = adapted(CONFIGS["grouped"], targets=("q_proj",))
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    frozen = build(CONFIGS["grouped"]).get_submodule("model.layers.0.self_attn.q_proj").weight
    expected = frozen + (6.0 / 3) * layer.lora_B.weight @ layer.lora_A.weight
    assert torch.allclose(layer.weight, expected, atol=1e-6)
    assert torch.equal(layer._parameters["weight"], frozen)


@torch.no_grad()
def test_cached_decoding_knows_the_adapters(config: ModelConfig) -> None:
    model = adapted(config)
    whole = model(IDS_BT).hidden_BTD
    sequences = Sequences(model, 2, 16)
    feed(model, sequences, IDS_BT[:, :11])
    last = feed(model, sequences, IDS_BT[:, 11:])
    assert torch.allclose(last[:, 0], whole[:, 11], atol=2e-5)


def test_targets_choose_by_the_end_of_the_name() -> None:
    model = build(CONFIGS["latent"])
    names = add_adapters(
        model, LoraConfig(rank=2, targets=("kv_b_proj", "shared_experts.up_proj")), seed=0
    )
    assert names == [
        "model.layers.0.self_attn.kv_b_proj",
        "model.layers.1.self_attn.kv_b_proj",
        "model.layers.1.mlp.shared_experts.up_proj",
        "model.layers.2.self_attn.kv_b_proj",
        "model.layers.2.mlp.shared_experts.up_proj",
    ]
    with pytest.raises(ConfigError, match=r"no projection 'v_proj'; it has down_proj, gate_proj"):
        add_adapters(build(CONFIGS["latent"]), LoraConfig(rank=2, targets=("v_proj",)), seed=0)
    with pytest.raises(ConfigError, match="has adapters already"):
        add_adapters(model, LoraConfig(rank=2), seed=0)


def test_the_seed_decides_the_adapters() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = build(CONFIGS["grouped"])
        [name, *_] = add_adapters(model, LoraConfig(rank=2), seed=seed)
        drawn.append(adapter_tensors(model)[f"{name}.lora_A.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_saved_adapters_come_back(config: ModelConfig, tmp_path: Path) -> None:
    model = adapted(config)
    save_adapters(model, tmp_path / "adapter", base="models/base")
    loaded = build(config)
    load_adapters(loaded, tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))


def test_the_files_are_those_of_peft(tmp_path: Path) -> None:
    model = adapted(CONFIGS["grouped"], targets=("q_proj",))
    save_adapters(model, tmp_path / "adapter", base="models/base")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert (settings["r"], settings["lora_alpha"]) == (3, 6.0)
    assert settings["base_model_name_or_path"] == "models/base"
    layers = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    assert settings["target_modules"] == layers
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.{layer}.lora_{part}.weight": shape
        for layer in layers
        for part, shape in (("A", (3, 24)), ("B", (48, 3)))
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT 0.21 asks transformers by an old name
def test_peft_loads_them_on_the_base_that_they_name(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    plain = grouped_config(attention_bias=True)
    save(build(plain), tmp_path / "base", weight_format="float32")
    model = adapted(plain)
    save_adapters(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS_BT).logits, logits(model)[0], atol=1e-5)


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    save_adapters(adapted(grouped_config()), tmp_path / "adapter", base="base")
    with pytest.raises(CheckpointError, match=r"has the shape \[\d+, 24\], not \[\d+, 36\]"):
        load_adapters(build(grouped_config(hidden_size=36)), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["target_modules"].append("model.layers.2.self_attn.q_proj")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"layers\.2\.\S+lora_[AB]\.weight is missing"):
        load_adapters(build(grouped_config(num_hidden_layers=3)), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json does not exist"):
        load_adapters(build(grouped_config()), tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_learn_on_bfloat16_weights_what_they_would_on_a_float32_copy(name: str) -> None:
    """Under autocast, bit for bit: nothing is lost by not holding that copy."""
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        model = build(CONFIGS[name])
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().to(dtype)
        add_adapters(model, LoraConfig(rank=3, alpha=6.0), seed=0)
        generator = torch.Generator().manual_seed(1)
        for tensor in adapter_tensors(model).values():
            tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(IDS_BT)
            loss = next_token_loss(model, output, IDS_BT).loss_sum
            loss = loss + sum(further.loss_sum for further in mtp_losses(model, output, IDS_BT))
        loss.backward()
        assert output.hidden_BTD.dtype == torch.bfloat16
        gradients.append([tensor.grad for tensor in adapter_tensors(model).values()])
    for narrow, wide in zip(*gradients, strict=True):
        assert narrow is not None
        assert narrow.abs().max() > 0
        assert torch.equal(narrow, wide)


def test_a_merged_bfloat16_weight_is_rounded_once() -> None:
    model = build(CONFIGS["grouped"]).bfloat16()
    add_adapters(model, LoraConfig(rank=3, alpha=6.0), seed=0)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, LoraLinear)
    layer.lora_B.weight.data.fill_(0.01)
    frozen = layer._parameters["weight"]
    assert frozen is not None
    exact = frozen.float() + 2.0 * layer.lora_B.weight @ layer.lora_A.weight
    merge_adapters(model)
    assert torch.equal(layer.weight, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_adapters_is_loaded_as_the_model_it_makes(
    config: ModelConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    weights.save(build(config), base)
    save_adapters(adapted(config), adapter, base=str(base))
    expected = weights.load(base, dtype=dtype)
    load_adapters(expected, adapter)
    merge_adapters(expected)
    loaded = weights.load(adapter, dtype=dtype)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert weights.read_model_config(adapter) == loaded.config == expected.config
    assert weights.stored_dtype(adapter) == torch.float32
    assert weights.tokenizer_path(adapter) == base
    (adapter / "tokenizer.json").touch()
    assert weights.tokenizer_path(adapter) == adapter


def test_adapters_may_stand_on_adapters(tmp_path: Path) -> None:
    config = CONFIGS["grouped"]
    weights.save(build(config), tmp_path / "base")
    save_adapters(adapted(config), tmp_path / "inner", base=str(tmp_path / "base"))
    save_adapters(adapted(config), tmp_path / "outer", base=str(tmp_path / "inner"))
    twice = weights.load(tmp_path / "outer").get_submodule("model.layers.0.self_attn.q_proj")
    once = weights.load(tmp_path / "inner").get_submodule("model.layers.0.self_attn.q_proj")
    plain = build(config).get_submodule("model.layers.0.self_attn.q_proj")
    difference = (twice.weight - once.weight) - (once.weight - plain.weight)
    assert difference.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nobody/nothing", "holds adapters for nobody/nothing, which is not here. Fetch"),
        (None, "names no base_model_name_or_path"),
        ("itself", "names itself as the base"),
    ],
)
def test_adapters_whose_base_is_not_there_are_refused(
    base: str | None, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    save_adapters(adapted(CONFIGS["grouped"]), folder, base=str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    if base != "itself":
        settings["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        weights.load(folder)


def test_a_rank_above_the_smallest_side_is_refused(config: ModelConfig) -> None:
    model = build(config)
    before = set(model.state_dict())
    largest = min(min(layer.weight.shape) for _, layer in projections(model))
    with pytest.raises(
        ConfigError, match=rf"--lora\.rank {largest + 1} .* largest useful rank is {largest},"
    ):
        add_adapters(model, LoraConfig(rank=largest + 1), seed=0)
    assert model.state_dict().keys() == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_adapters(model, LoraConfig(rank=largest), seed=0)


def test_only_projections_with_adapters_bound_the_rank() -> None:
    config = CONFIGS["latent"]
    smallest = min(min(layer.weight.shape) for _, layer in projections(build(config)))
    assert smallest < config.hidden_size
    add_adapters(build(config), LoraConfig(rank=smallest + 1, targets=("o_proj",)), seed=0)
