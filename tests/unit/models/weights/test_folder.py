"""Reading folders: every layout that is published, and the choices a reader makes."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import build, grouped_config, random_ids
from tests.unit.models.weights.files import change_json, change_tensors, rounded, v3_config
from ziphius.core import memory
from ziphius.core.errors import CheckpointError, ConfigError, DeviceError
from ziphius.models.weights import load, read_model_config, save, stored_dtype
from ziphius.models.weights.tensor_reader import TensorReader

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture
def model():
    return rounded(build(v3_config()))


@pytest.fixture
def folder(model, tmp_path):
    save(model, tmp_path / "model", weight_format="bfloat16")
    return tmp_path / "model"


def assert_equal_models(actual, expected):
    assert actual.config == expected.config
    states = actual.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name].float(), tensor.float()), name


def test_a_loaded_model_computes_the_same_and_is_in_evaluation_mode(model, folder):
    loaded = load(folder, dtype=torch.float32)
    ids_BT = random_ids(2, 7, 61)
    assert torch.equal(
        loaded.logits(loaded(ids_BT).hidden_BTD), model.logits(model(ids_BT).hidden_BTD)
    )
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_dtype_none_keeps_what_is_stored_and_the_router_bias_in_float32(model, folder):
    loaded = load(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.state_dict()[BIAS].dtype == torch.float32
    assert torch.equal(loaded.state_dict()[BIAS], model.state_dict()[BIAS])
    assert_equal_models(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_take_the_dtype_asked_for(folder, dtype):
    loaded = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.state_dict()[BIAS].dtype == torch.float32


def test_other_dtypes_are_refused(folder):
    with pytest.raises(ConfigError, match=r"int64.*float32"):
        load(folder, dtype=torch.int64)


def in_dtypes(*dtypes):
    def change(tensors):
        for index, (name, tensor) in enumerate(sorted(tensors.items())):
            tensors[name] = tensor.to(dtypes[index % len(dtypes)])

    return change


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        # float16 is slow on CPUs; the others are the narrowest type that holds all.
        ((torch.float16,), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16,), torch.bfloat16),
    ],
)
def test_dtype_none_loses_nothing(folder, stored, expected):
    change_tensors(folder / "model.safetensors", in_dtypes(*stored))
    assert {parameter.dtype for parameter in load(folder).parameters()} == {expected}


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("fp8", torch.bfloat16)],
)
def test_the_stored_dtype_is_that_of_the_weights_alone(tmp_path, model, weight_format, expected):
    """The router bias of a bfloat16 folder is float32, and so are scales and old frequencies."""
    folder = tmp_path / "model"
    save(model, folder, weight_format=weight_format)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.update(frequencies))
    assert stored_dtype(folder) == expected
    assert {parameter.dtype for parameter in load(folder).parameters()} == {expected}


def test_what_does_not_fit_is_refused_before_it_is_read(folder, model, monkeypatch):
    floating = sum(parameter.numel() for parameter in model.parameters())
    bias = 4 * sum(buffer.numel() for buffer in model.buffers())
    for free, dtype in ((4 * floating + bias, torch.float32), (2 * floating + bias, None)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        load(folder, dtype=dtype)
    with pytest.raises(DeviceError) as error:
        load(folder, dtype=torch.float32)
    assert str(error.value).startswith(f"To load {folder} as float32 takes")
    assert "What fits: dtype bfloat16 (" in str(error.value)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * floating + bias - 1)
    monkeypatch.setattr(TensorReader, "fill", None)
    with pytest.raises(DeviceError, match=r"as bfloat16 takes .* What fits: as INT8"):
        load(folder)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(folder, monkeypatch):
    fill = TensorReader.fill

    def fill_and_cut(self, name, place):
        fill(self, name, place)
        os.truncate(folder / "model.safetensors", 2_000)

    monkeypatch.setattr(TensorReader, "fill", fill_and_cut)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ended while it was read"):
        load(folder)


def test_tied_embeddings_stay_tied(tmp_path):
    model = build(grouped_config(tie_word_embeddings=True))
    save(model, tmp_path / "model", weight_format="float32")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert "lm_head.weight" not in stored
    loaded = load(tmp_path / "model")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_equal_models(loaded, model)


def test_a_written_copy_of_the_tied_head_must_equal_the_embedding(tmp_path):
    model = build(grouped_config(tie_word_embeddings=True))
    folder = tmp_path / "model"
    save(model, folder, weight_format="float32")

    def copy_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def bend_head(tensors):
        tensors["lm_head.weight"][3, 5] += 1

    change_tensors(folder / "model.safetensors", copy_head)
    assert_equal_models(load(folder), model)
    change_tensors(folder / "model.safetensors", bend_head)
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds lm_head\.weight.*differs"):
        load(folder)


COPIES = ["model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"]


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_an_mtp_layer_may_be_left_out_but_not_differ(model, folder, name):
    file = folder / "model.safetensors"

    def bend(tensors):
        tensors[name][0, 0] += 1

    change_tensors(file, bend)
    with pytest.raises(CheckpointError, match=name):
        load(folder)
    change_tensors(file, lambda tensors: tensors.pop(name))
    assert_equal_models(load(folder), model)


def without_mtp_layer(tensors):
    for name in [name for name in tensors if name.startswith("model.layers.2.")]:
        del tensors[name]


def test_mtp_layers_are_never_dropped_silently(folder):
    change_json(folder / "config.json", num_nextn_predict_layers=0)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\..*drop_mtp=True \(--drop-mtp\)"):
        load(folder)
    loaded = load(folder, drop_mtp=True)
    assert len(loaded.model.layers) == 2
    assert loaded.config.num_nextn_predict_layers == 0


def test_mtp_layers_that_no_file_holds_are_left_out_with_one_warning(folder, model, caplog):
    change_tensors(folder / "model.safetensors", without_mtp_layer)
    loaded = load(folder)
    assert loaded.config.num_nextn_predict_layers == 0
    kept = {n: t for n, t in model.state_dict().items() if not n.startswith("model.layers.2.")}
    assert loaded.state_dict().keys() == kept.keys()
    [line] = caplog.messages
    assert line.startswith(f"{folder}: config.json says num_nextn_predict_layers = 1, but no file")
    assert "\n" not in line
    caplog.clear()
    assert load(folder, drop_mtp=True).config.num_nextn_predict_layers == 0
    assert not caplog.messages


def test_a_part_of_the_mtp_layers_is_never_made_up(folder, caplog):
    name = "model.layers.2.eh_proj.weight"
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"lacks {name}.*only a part.*\(--drop-mtp\)"):
        load(folder)
    assert load(folder, drop_mtp=True).config.num_nextn_predict_layers == 0
    assert not caplog.messages


def test_dropping_mtp_layers_leaves_the_rest_equal(model, folder):
    dropped = load(folder, drop_mtp=True).state_dict()
    kept = {n: t for n, t in model.state_dict().items() if not n.startswith("model.layers.2.")}
    assert dropped.keys() == kept.keys()
    assert all(torch.equal(dropped[name].float(), kept[name].float()) for name in kept)


def test_drop_mtp_without_effect_is_an_error(tmp_path):
    save(build(v3_config(num_nextn_predict_layers=0)), tmp_path / "model")
    with pytest.raises(ConfigError, match="drop_mtp has no effect"):
        load(tmp_path / "model", drop_mtp=True)


def test_mtp_layers_that_hold_all_experts_cannot_be_dropped(tmp_path):
    save(build(v3_config(first_k_dense_replace=2)), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"drop_mtp: first_k_dense_replace = 2"):
        load(tmp_path / "model", drop_mtp=True)


def test_shards_are_read_whatever_their_order(model, tmp_path):
    save(model, tmp_path / "model", max_shard_bytes=5_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 5
    assert_equal_models(load(tmp_path / "model"), model)


def test_a_scale_may_stand_in_another_file_than_its_weight(model, tmp_path):
    folder = tmp_path / "model"
    save(model, folder, weight_format="fp8")
    expected = load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_scale_inv")}
    assert len(scales) > 20
    weight_map = dict.fromkeys(tensors, "a.safetensors") | dict.fromkeys(scales, "b.safetensors")
    save_file(tensors, folder / "a.safetensors")
    save_file(scales, folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal_models(load(folder), expected)


def test_scales_may_be_stored_as_powers_of_two(model, tmp_path):
    folder = tmp_path / "model"
    save(model, folder, weight_format="fp8-ue8m0")
    expected = load(folder)

    def narrow(tensors):
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name] = tensors[name].to(torch.float8_e8m0fnu)

    change_tensors(folder / "model.safetensors", narrow)
    assert_equal_models(load(folder), expected)


def test_rotary_frequencies_of_older_files_are_known_and_not_needed(model, folder):
    # Moonlight and files of the time of Llama 2 hold them; the config says the same.
    def add(tensors):
        tensors["model.layers.2.self_attn.rotary_emb.inv_freq"] = torch.ones(3)

    def widen(tensors):
        tensors["model.layers.2.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    change_tensors(folder / "model.safetensors", add)
    assert_equal_models(load(folder), model)
    change_tensors(folder / "model.safetensors", widen)
    with pytest.raises(CheckpointError, match=r"inv_freq of shape \[4\]; config\.json asks for"):
        load(folder)


def test_remote_code_in_a_config_is_ignored(model, folder):
    # If anything imported it, this file would say so.
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert_equal_models(load(folder), model)


def test_a_hugging_face_cache_with_its_links_is_read(model, tmp_path):
    repository = tmp_path / "models--deepseek-ai--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    save(model, tmp_path / "model")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, name in enumerate(("config.json", "model.safetensors")):
        (tmp_path / "model" / name).rename(repository / "blobs" / f"{index}")
        (snapshot / name).symlink_to(f"../../blobs/{index}")
    assert_equal_models(load(snapshot), model)


def test_a_model_in_a_subfolder_of_a_snapshot_and_an_own_folder_of_links_are_read(model, tmp_path):
    repository = tmp_path / "models--deepseek-ai--tiny"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    places = (snapshot / "checkpoint-10", tmp_path / "own")
    for place in (blobs, *places):
        place.mkdir(parents=True)
    save(model, tmp_path / "model")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).rename(blobs / f"0{name}")
        for place in places:
            (place / name).symlink_to(blobs / f"0{name}")
    for place in places:
        assert_equal_models(load(place), model)
    with pytest.raises(CheckpointError, match=r"download cache: give one of the folders in .*snap"):
        load(repository)


@pytest.mark.parametrize("is_listed", [False, True])
@pytest.mark.parametrize("is_stored", [False, True])
def test_an_index_may_be_wrong_about_copies_alone(is_listed, is_stored, tmp_path):
    model = build(grouped_config(tie_word_embeddings=True))
    rounded(model)
    save(model, tmp_path / "m", max_shard_bytes=5_000)
    index = tmp_path / "m" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    last = tmp_path / "m" / sorted(weight_map.values())[-1]
    if is_listed:
        change_json(index, weight_map={**weight_map, "lm_head.weight": last.name})
    if is_stored:
        embedding = model.model.embed_tokens.weight.detach().bfloat16()
        change_tensors(last, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    assert_equal_models(load(tmp_path / "m"), model)
    change_json(index, weight_map={**weight_map, "model.norm.bias": last.name})
    with pytest.raises(CheckpointError, match=r"puts model\.norm\.bias into"):
        load(tmp_path / "m")


def test_one_numbered_file_without_an_index_is_read(model, folder):
    file = folder / "model.safetensors"
    file.rename(folder / "model-00001-of-00001.safetensors")
    assert_equal_models(load(folder), model)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds safetensors files but neither"):
        load(folder)


def test_the_config_alone_can_be_read(model, folder):
    (folder / "model.safetensors").unlink()
    assert read_model_config(folder) == model.config


def test_what_config_json_says_about_storage_does_not_stay_with_the_model(tmp_path, model):
    save(model, tmp_path / "model", weight_format="fp8")
    assert "quantization_config" in (tmp_path / "model" / "config.json").read_text()
    assert load(tmp_path / "model").config.other == {}


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "awq"}, "'awq'; only fp8"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, r"\[64, 128\]"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'e5m2'"),
        ({"bits": 4}, "without a quant_method"),
    ],
)
def test_other_quantizations_are_refused(folder, quantization, message):
    change_json(folder / "config.json", quantization_config=quantization)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_finite_weights_pass_the_check(model, folder):
    assert_equal_models(load(folder, check_finite=True), model)


def test_files_are_only_read(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    loaded = load(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
