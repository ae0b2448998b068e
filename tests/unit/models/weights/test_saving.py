"""Written folders: layout, files, formats, and that nothing half-written is left."""

import itertools
import json
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tiny import build, grouped_config
from tests.unit.models.weights.files import rounded, v3_config
from ziphius.core import files
from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.models.weights import load, save
from ziphius.models.weights.names import is_projection

FORMATS = pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "fp8", "fp8-ue8m0"])


@pytest.fixture
def model():
    return build(v3_config())


def stored(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def test_float32_round_trip_is_exact(model, tmp_path):
    save(model, tmp_path / "model", weight_format="float32")
    loaded = load(tmp_path / "model").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("dtypes", [("float32",), ("bfloat16",), ("bfloat16", "float32")])
def test_nothing_is_rounded_unless_it_is_asked_for(model, tmp_path, dtypes):
    for parameter, dtype in zip(model.parameters(), itertools.cycle(dtypes), strict=False):
        parameter.data = parameter.data.to(getattr(torch, dtype))
    save(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["torch_dtype"] == dtypes[-1]
    loaded = load(tmp_path / "model").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name].float(), tensor.float()), name


def test_a_model_that_the_disk_has_no_room_for_is_refused_before_it_is_written(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**4))
    with pytest.raises(OutputError, match=r"the model in float32 takes .* are free on the disk of"):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_bfloat16_round_trip_rounds_once_and_keeps_the_bias(model, tmp_path):
    save(model, tmp_path / "model", weight_format="bfloat16")
    loaded = load(tmp_path / "model").state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor if name.endswith("_bias") else tensor.bfloat16()
        assert torch.equal(loaded[name], expected), name


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_trip_writes_the_same_bytes(model, tmp_path, weight_format, dtype):
    save(model, tmp_path / "one", weight_format=weight_format)
    save(load(tmp_path / "one", dtype=dtype), tmp_path / "two", weight_format=weight_format)
    save(load(tmp_path / "two", dtype=dtype), tmp_path / "three", weight_format=weight_format)
    files = [
        (tmp_path / trip / "model.safetensors").read_bytes() for trip in ("one", "two", "three")
    ]
    assert files[1] == files[2]
    # Held in bfloat16, weights lose bits of float32 or of FP8 times a float scale, once.
    if dtype is torch.float32 or weight_format in ("bfloat16", "fp8-ue8m0"):
        first, second = (load(tmp_path / trip, dtype=dtype).state_dict() for trip in ("one", "two"))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
        # A block rounded down to half a power of two gets the smaller scale: same values.
        assert files[0] == files[1] or weight_format == "fp8-ue8m0"


@pytest.mark.parametrize("weight_format", ["fp8", "fp8-ue8m0"])
def test_fp8_folders_hold_what_the_published_ones_do(model, tmp_path, weight_format):
    save(model, tmp_path / "model", weight_format=weight_format)
    tensors = stored(tmp_path / "model")
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            assert is_projection(name.removesuffix("_scale_inv"))
            assert tensor.dtype == torch.float32
        elif is_projection(name):
            assert tensor.dtype == torch.float8_e4m3fn
            assert name + "_scale_inv" in tensors
        else:
            is_bias = name.endswith("e_score_correction_bias")
            assert tensor.dtype == (torch.float32 if is_bias else torch.bfloat16)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    expected = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    if weight_format == "fp8-ue8m0":
        expected["scale_fmt"] = "ue8m0"
        mantissas = [t.frexp().mantissa for n, t in tensors.items() if n.endswith("_scale_inv")]
        assert all(bool((mantissa == 0.5).all()) for mantissa in mantissas)
    assert config["quantization_config"] == expected
    assert config["torch_dtype"] == "bfloat16"


@FORMATS
def test_experts_copies_and_names_on_disk(model, tmp_path, weight_format):
    save(model, tmp_path / "model", weight_format=weight_format)
    tensors = stored(tmp_path / "model")
    assert not any(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in tensors)
    for name, original in {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
    }.items():
        assert torch.equal(tensors[name], tensors[original])
    if weight_format == "float32":
        experts = model.model.layers[1].mlp.experts
        prefix = "model.layers.1.mlp.experts.5"
        assert torch.equal(tensors[f"{prefix}.gate_proj.weight"], experts.gate_up_proj[5, :12])
        assert torch.equal(tensors[f"{prefix}.up_proj.weight"], experts.gate_up_proj[5, 12:])
        assert torch.equal(tensors[f"{prefix}.down_proj.weight"], experts.down_proj[5])


@FORMATS
def test_shards_keep_their_limit_and_the_index_is_true(model, tmp_path, weight_format):
    limit = 8_000
    folder = tmp_path / "model"
    save(model, folder, weight_format=weight_format, max_shard_bytes=limit)
    save(model, tmp_path / "whole", weight_format=weight_format)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    total = 0
    for file in files:
        tensors = load_file(folder / file)
        sizes = [tensor.numel() * tensor.itemsize for tensor in tensors.values()]
        assert sum(sizes) <= limit or len(tensors) <= 2
        total += sum(sizes)
        assert set(tensors) == {
            name for name, place in index["weight_map"].items() if place == file
        }
    assert index["metadata"] == {"total_size": total}
    whole = stored(tmp_path / "whole")
    assert set(index["weight_map"]) == set(whole)
    assert all(torch.equal(t.float(), whole[n].float()) for n, t in stored(folder).items())


def test_a_model_that_fits_is_one_file_without_an_index(model, tmp_path):
    save(model, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_files_can_be_read_by_others(model, tmp_path):
    before = os.umask(0o022)
    try:
        save(model, tmp_path / "model", max_shard_bytes=20_000)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o644}


class Tokenizer:
    eos_ids = ()

    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def test_a_tokenizer_is_saved_into_the_same_folder(model, tmp_path):
    save(model, tmp_path / "model", Tokenizer())
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


class BrokenTokenizer:
    eos_ids = ()

    def save(self, folder):
        raise RuntimeError("no")


def test_an_error_leaves_nothing_behind(model, tmp_path):
    with pytest.raises(RuntimeError):
        save(model, tmp_path / "model", BrokenTokenizer())
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds NaN"):
        save(model, tmp_path / "model", weight_format="fp8")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_touched(model, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_clear_error(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ziphius.models.weights.saving.save_file", full)
    with pytest.raises(OutputError, match=r"model\.safetensors.*No space left"):
        save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_shards_need_a_size(model, tmp_path):
    with pytest.raises(ConfigError, match="max_shard_bytes = 0"):
        save(model, tmp_path / "model", max_shard_bytes=0)


def test_saving_does_not_change_the_model(tmp_path):
    model = rounded(build(grouped_config(tie_word_embeddings=True, attention_bias=True)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(model, tmp_path / "model", weight_format="fp8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def grouped(side):
    """A model whose hidden states are `side` wide, everything else of whole blocks."""
    fields = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    return build(grouped_config(hidden_size=side, intermediate_size=256, **fields))


def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("side", [96, 256])
def test_fp8_of_whole_blocks_is_read_by_transformers_as_by_us(tmp_path, caplog, side):
    save(grouped(side), tmp_path / "model", weight_format="fp8")
    assert caplog.text == ""
    ours = load(tmp_path / "model", dtype=torch.bfloat16).state_dict()
    read = theirs(tmp_path / "model").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in ours.items())


def test_fp8_that_transformers_would_misread_has_a_name_that_it_refuses(tmp_path, caplog):
    model = grouped(192)
    save(model, tmp_path / "model", weight_format="fp8")
    assert "names it ziphius, which they refuse" in caplog.text
    with pytest.raises(ValueError, match="model type `ziphius`"):
        theirs(tmp_path / "model")
    loaded = load(tmp_path / "model", dtype=torch.float32)
    assert loaded.config == model.config
    weight, source = loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj
    assert torch.allclose(weight, source.weight, rtol=2**-4, atol=1e-3)


def test_fp8_that_transformers_cannot_multiply_out_is_warned_of(tmp_path, caplog):
    save(grouped(576), tmp_path / "model", weight_format="fp8")
    assert "transformers 5.23 loads FP8 whose shapes are no whole blocks of 128 only" in caplog.text
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"


def test_a_gate_of_ones_own_has_a_name_that_others_refuse(tmp_path, caplog):
    gate = {"topk_method": "topk", "scoring_func": "softmax", "norm_topk_prob": False}
    model = build(v3_config(n_group=1, topk_group=1, **gate))
    save(model, tmp_path / "model", weight_format="float32")
    assert "which they refuse" in caplog.text
    with pytest.raises(ValueError, match="model type `ziphius`"):
        theirs(tmp_path / "model")
    assert load(tmp_path / "model").config == model.config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 3, "moe_layer_freq": 2}, "ignores moe_layer_freq"),
        (
            {
                "model_type": "deepseek_v2",
                "topk_method": "greedy",
                "scoring_func": "softmax",
                "n_group": 1,
                "topk_group": 1,
                "routed_scaling_factor": 1.0,
            },
            "ignores norm_topk_prob",
        ),
    ],
)
def test_what_transformers_alone_ignores_is_warned_of(tmp_path, caplog, changes, named):
    save(build(v3_config(**changes)), tmp_path / "model")
    assert f"transformers 5.23 {named}" in caplog.text
