"""INT8 folders: written, described and read back equal; damaged ones are refused by name."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny import build, grouped_config, random_ids
from tests.unit.models.weights.files import change_json, change_tensors, read_parts, v3_config
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.generate import Request, generate
from ziphius.engine.load import load_for_inference
from ziphius.models.model import Model
from ziphius.models.weights import load, save
from ziphius.quant.int8 import quantize, size_bytes
from ziphius.text.vocabulary import deepseek_tokenizer

UP = "model.layers.0.mlp.up_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def quantized(config: Any = None) -> Model:
    model = build(config or v3_config())
    quantize(model)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "model"
    save(quantized(), folder, weight_format="float32")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize(
    "config",
    [
        v3_config(),
        grouped_config(qkv_bias=True, model_type="qwen2"),
        grouped_config(tie_word_embeddings=True),
    ],
    ids=["v3", "qwen2", "tied"],
)
def test_a_round_trip_is_exact(config: Any, tmp_path: Path) -> None:
    model = quantized(config)
    save(model, tmp_path / "model", weight_format="float32")
    loaded = load(tmp_path / "model")
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ids_BT = random_ids(2, 8, 61)
    with torch.no_grad():
        assert torch.equal(loaded(ids_BT).hidden_BTD, model(ids_BT).hidden_BTD)


def test_the_rest_may_be_bfloat16(tmp_path: Path) -> None:
    model = quantized()
    save(model, tmp_path / "model", weight_format="bfloat16", max_shard_bytes=3_000)
    assert len(list(tmp_path.glob("model/*.safetensors"))) > 2
    loaded, wide = load(tmp_path / "model"), load(tmp_path / "model", dtype=torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(wide.named_buffers())[name])


def test_the_file_is_as_small_as_the_model(tmp_path: Path) -> None:
    model = build(grouped_config())
    save(model, tmp_path / "float", weight_format="float32")
    quantize(model)
    save(model, tmp_path / "int8", weight_format="float32")
    file = tmp_path / "int8" / "model.safetensors"
    _, data = read_parts(file)
    assert len(data) == size_bytes(model)
    assert file.stat().st_size < 0.5 * (tmp_path / "float" / "model.safetensors").stat().st_size


def test_experts_are_single_tensors_with_scales_and_the_config_says_how(whole: Path) -> None:
    tensors = load_file(whole / "model.safetensors")
    assert tensors[EXPERT].dtype == torch.int8
    assert tensors[EXPERT].shape == (12, 24)
    assert tensors[EXPERT + "_scale"].dtype == torch.float32
    assert tensors[EXPERT + "_scale"].shape == (12, 1)
    assert "model.layers.2.shared_head.head.weight" not in tensors
    assert tensors["model.layers.2.embed_tokens.weight"].dtype == torch.float32
    found = json.loads((whole / "config.json").read_text())["quantization_config"]
    assert (found["quant_method"], found["format"]) == ("compressed-tensors", "int-quantized")
    group = found["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["strategy"] == "token"
    assert found["ignore"] == [f"model.layers.{layer}.self_attn.kv_b_proj" for layer in range(3)]


def test_mtp_layers_can_be_left_out(whole: Path) -> None:
    loaded = load(whole, drop_mtp=True)
    assert loaded.config.num_nextn_predict_layers == 0
    assert load(whole, drop_mtp=True).state_dict().keys() < load(whole).state_dict().keys()


def test_scales_in_bfloat16_are_read(folder: Path) -> None:
    """As other programs write them."""

    def narrow(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith("_scale"):
                tensors[name] = tensors[name].bfloat16()

    change_tensors(folder / "model.safetensors", narrow)
    _, scale = load(folder).lm_head.kept("weight")
    assert scale.dtype == torch.float32
    assert torch.equal(scale, scale.bfloat16().float())


def test_the_engine_loads_and_speaks(tmp_path: Path) -> None:
    model = quantized(grouped_config(vocab_size=512))
    save(model, tmp_path / "model", deepseek_tokenizer(512), weight_format="float32")
    loaded = load_for_inference(str(tmp_path / "model"), device="cpu")
    requests = [Request((1, 2, 3), 5, 0)]
    [found], [expected] = generate(loaded.model, requests), generate(model, requests)
    assert found.token_ids == expected.token_ids


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name).zero_()


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(UP + "_scale"), f"lacks {UP}_scale"),
        (drop(UP), f"{UP}_scale, which a deepseek_v3 of this config has not"),
        (drop(EXPERT), f"lacks {EXPERT}"),
        (put(UP + "_scale", lambda t: t[:-1].clone()), rf"{UP}_scale of shape \[31, 1\]"),
        (put(UP + "_scale", lambda t: t.to(torch.int8)), f"{UP}_scale as I8"),
        (put(UP, lambda t: t[:, 1:].clone()), rf"{UP} of shape \[32, 23\]"),
        (put(UP, lambda t: t.float()), f"{UP}_scale, which a deepseek_v3"),
        (put(EXPERT, lambda t: t.float()), f"{EXPERT} as F32, but others of its layer as INT8"),
        (put("model.norm.weight", lambda t: t.to(torch.int8)), "model.norm.weight as I8, but no"),
        (
            put("model.layers.1.mlp.gate.weight", lambda t: t.to(torch.int8)),
            "gate.weight as I8, but no layer in INT8 has it",
        ),
        (
            lambda tensors: tensors.update({"extra.weight": torch.zeros(2, dtype=torch.int8)}),
            "extra.weight, which",
        ),
    ],
)
def test_damaged_folders_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (None, "format", "pack-quantized", "format 'pack-quantized'; only 'int-quantized'"),
        (None, "config_groups", {}, "config_groups with one group"),
        ("weights", "num_bits", 4, "weights with num_bits = 4; only 8"),
        ("weights", "strategy", "group", "weights with strategy = 'group'"),
        ("weights", "symmetric", False, "weights with symmetric = False"),
        ("input_activations", "dynamic", False, "input_activations with dynamic = False"),
        ("input_activations", None, None, "says nothing of input_activations"),
    ],
)
def test_other_descriptions_are_refused(
    folder: Path, part: str | None, key: str | None, value: Any, message: str
) -> None:
    file = folder / "config.json"
    found = copy.deepcopy(json.loads(file.read_text())["quantization_config"])
    group = found.get("config_groups", {}).get("group_0")
    if part is None:
        found[key] = value
    elif key is None:
        group[part] = None
    else:
        group[part][key] = value
    change_json(file, quantization_config=found)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_config_and_files_must_agree(folder: Path, tmp_path: Path) -> None:
    save(build(v3_config()), tmp_path / "float")
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_json(tmp_path / "float" / "config.json", quantization_config=found)
    with pytest.raises(CheckpointError, match="says the weights are INT8, but none of them is"):
        load(tmp_path / "float")
    change_json(folder / "config.json", quantization_config=None)
    with pytest.raises(CheckpointError, match=r"as INT8, of which config\.json says nothing"):
        load(folder)


def test_other_devices_and_formats_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device = meta: .* INT8 weights, which run on a CPU"):
        load(whole, device="meta")
    with pytest.raises(ConfigError, match="'fp8': the model is quantized to INT8"):
        save(quantized(), tmp_path / "fp8", weight_format="fp8")
    assert not (tmp_path / "fp8").exists()
