"""Damaged, lying and hostile checkpoints: each has its own message, before memory is taken.

A case is a function that damages an intact folder, and what the message must name.
"""

import json
import os
import random
import shutil

import pytest
import torch

from tests.denied import deny
from tests.tiny import build
from tests.unit.models.weights.files import (
    change_json,
    change_tensors,
    read_parts,
    v3_config,
    write_parts,
)
from ziphius.core.errors import CheckpointError, ZiphiusError
from ziphius.models.weights import load, save
from ziphius.models.weights.assembly import Assembly

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"
SCALE = UP + "_scale_inv"

CASES = {}


def case(*named, weight_format="bfloat16", shard_bytes=10**9):
    """Register a way to damage a folder, and the words its message must contain."""

    def register(damage):
        CASES[damage.__name__] = (damage, named, weight_format, shard_bytes)
        return damage

    return register


@pytest.fixture(scope="module")
def model():
    return build(v3_config())


def message_of(folder, **options):
    """Load, and return the message of the error there must be."""
    with pytest.raises(ZiphiusError) as caught:
        load(folder, **options)
    assert isinstance(caught.value, CheckpointError)
    return str(caught.value)


# Folder and config.json


@case("does not exist")
def missing_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@case("is empty")
def empty_folder(folder):
    for path in folder.iterdir():
        path.unlink()


@case("config.json", "does not exist")
def no_config(folder):
    (folder / "config.json").unlink()


@case("config.json", "JSON")
def truncated_config(folder):
    file = folder / "config.json"
    file.write_text(file.read_text()[:100])


@case("config.json", "gpt2")
def unknown_architecture(folder):
    change_json(folder / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])


@case("config.json", "num_hidden_layers", "1000000")
def a_million_layers(folder):
    change_json(folder / "config.json", num_hidden_layers=10**6)


@case("config.json", "hidden_size", "-64")
def negative_width(folder):
    change_json(folder / "config.json", hidden_size=-64)


@case("config.json", "parameters", "bytes")
def far_more_parameters_than_bytes(folder):
    change_json(folder / "config.json", num_hidden_layers=500, n_routed_experts=4096)


@case("config.json", "link", "leaves")
def config_links_out(folder):
    outside = folder.parent / "elsewhere.json"
    (folder / "config.json").rename(outside)
    (folder / "config.json").symlink_to(outside)


# Headers of safetensors


@case(WEIGHTS, "truncated", NORM)
def truncated_data(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-3])


@case(WEIGHTS, str(2**60))
def header_of_2_to_the_60_bytes(folder):
    file = folder / WEIGHTS
    file.write_bytes((2**60).to_bytes(8, "little") + file.read_bytes()[8:])


@case(WEIGHTS, "claims a header", "truncated")
def header_longer_than_the_file(folder):
    file = folder / WEIGHTS
    content = file.read_bytes()
    file.write_bytes((len(content) - 7).to_bytes(8, "little") + content[8:])


@case(WEIGHTS, "header is not valid JSON")
def header_length_too_short(folder):
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little") - 10
    file.write_bytes(length.to_bytes(8, "little") + content[8:])


@case(WEIGHTS, "0 bytes and no header")
def zero_byte_file(folder):
    (folder / WEIGHTS).write_bytes(b"")


@case(WEIGHTS, "100 bytes after")
def surplus_data(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(bytes(100))


@case(WEIGHTS, "JSON list")
def header_is_a_list(folder):
    write_parts(folder / WEIGHTS, b"[]", b"")


@case(WEIGHTS, "nested too deeply")
def header_nested_without_end(folder):
    write_parts(folder / WEIGHTS, b'{"a":' + b"[" * 100_000, b"")


@case(WEIGHTS, "twice", NORM)
def tensor_twice_in_one_header(folder):
    file = folder / WEIGHTS
    header, data = read_parts(file)
    text = json.dumps(header)
    write_parts(file, f'{{"{NORM}": {json.dumps(header[NORM])}, {text[1:]}'.encode(), data)


def change_header(folder, name, **changes):
    file = folder / WEIGHTS
    header, data = read_parts(file)
    header[name] |= changes
    write_parts(file, header, data)


@case(WEIGHTS, NORM, "gap or an overlap")
def overlapping_tensors(folder):
    header, _ = read_parts(folder / WEIGHTS)
    begin, end = header[NORM]["data_offsets"]
    change_header(folder, NORM, data_offsets=[begin - 2, end - 2])


@case(WEIGHTS, NORM, "do not hold")
def shape_larger_than_its_data(folder):
    change_header(folder, NORM, shape=[10**9])


@case(WEIGHTS, NORM, "impossible")
def negative_shape(folder):
    change_header(folder, NORM, shape=[-24, -1])


@case(WEIGHTS, NORM, "no dtype")
def entry_without_a_dtype(folder):
    change_header(folder, NORM, dtype=None)


@case(WEIGHTS, "200001 tensors")
def far_too_many_tensors_of_nothing(folder):
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = b",".join(b'"%d"' % index + entry for index in range(200_001))
    write_parts(folder / WEIGHTS, b"{" + names + b"}", b"")


# Tensors against the config


@case(WEIGHTS, UP, "lacks")
def missing_tensor(folder):
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(UP))


@case(WEIGHTS, "model.layers.1.evil.weight")
def left_over_tensor(folder):
    def add(tensors):
        tensors["model.layers.1.evil.weight"] = torch.zeros(3)

    change_tensors(folder / WEIGHTS, add)


@case(WEIGHTS, "../../x")
def tensor_named_like_a_path(folder):
    def add(tensors):
        tensors["../../x"] = torch.zeros(3)

    change_tensors(folder / WEIGHTS, add)


@case(WEIGHTS, UP, "[24, 12]", "[12, 24]")
def wrong_shape(folder):
    def turn(tensors):
        tensors[UP] = tensors[UP].T.contiguous()

    change_tensors(folder / WEIGHTS, turn)


@case(WEIGHTS, UP, "I64")
def whole_number_weight(folder):
    def change(tensors):
        tensors[UP] = tensors[UP].long()

    change_tensors(folder / WEIGHTS, change)


@case(WEIGHTS, UP, "F8_E8M0", "scales")
def weight_in_a_format_of_scales(folder):
    def change(tensors):
        tensors[UP] = tensors[UP].abs().to(torch.float8_e8m0fnu)

    change_tensors(folder / WEIGHTS, change)


@case(WEIGHTS, SCALE, "missing", weight_format="fp8")
def fp8_without_a_scale(folder):
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(SCALE))


@case(WEIGHTS, SCALE, "[1, 2]", weight_format="fp8")
def fp8_scale_of_a_wrong_shape(folder):
    def widen(tensors):
        tensors[SCALE] = torch.ones(1, 2)

    change_tensors(folder / WEIGHTS, widen)


@case(WEIGHTS, SCALE, "BF16", weight_format="fp8")
def fp8_scale_of_a_wrong_type(folder):
    def narrow(tensors):
        tensors[SCALE] = tensors[SCALE].bfloat16()

    change_tensors(folder / WEIGHTS, narrow)


@case(WEIGHTS, SCALE, "has not")
def scale_of_a_weight_that_is_not_fp8(folder):
    def add(tensors):
        tensors[SCALE] = torch.ones(1, 1)

    change_tensors(folder / WEIGHTS, add)


@case(WEIGHTS, NORM, "only matrices", weight_format="fp8")
def fp8_vector(folder):
    def change(tensors):
        tensors[NORM] = tensors[NORM].to(torch.float8_e4m3fn)

    change_tensors(folder / WEIGHTS, change)


# Several files


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors"))


@case("model-00002-of-", "model-00001-of-", "too", shard_bytes=20_000)
def tensor_in_two_shards(folder):
    first, second, *_ = shards_of(folder)
    entries = {}
    change_tensors(first, entries.update)
    change_tensors(second, lambda tensors: tensors.update(dict([entries.popitem()])))


@case("model-00002-of-", "does not exist", shard_bytes=20_000)
def missing_shard(folder):
    shards_of(folder)[1].unlink()


@case("model-00001-of-", INDEX, "does not hold", shard_bytes=20_000)
def index_lists_a_tensor_that_no_file_holds(folder):
    file = folder / INDEX
    weight_map = json.loads(file.read_text())["weight_map"]
    weight_map["model.layers.0.more.weight"] = shards_of(folder)[0].name
    change_json(file, weight_map=weight_map)


@case(INDEX, NORM, "model-00001-of-", "does not hold", shard_bytes=20_000)
def index_puts_a_tensor_into_another_file(folder):
    point_index_at(folder, shards_of(folder)[0].name)


@case(INDEX, "does not list", NORM, shard_bytes=20_000)
def index_forgets_a_tensor(folder):
    file = folder / INDEX
    weight_map = json.loads(file.read_text())["weight_map"]
    del weight_map[NORM]
    change_json(file, weight_map=weight_map)


def point_index_at(folder, name):
    file = folder / INDEX
    weight_map = json.loads(file.read_text())["weight_map"]
    change_json(file, weight_map=weight_map | {NORM: name})


@case("../x.safetensors", "plain names", shard_bytes=20_000)
def index_names_a_file_above(folder):
    shards_of(folder)[0].rename(folder.parent / "x.safetensors")
    point_index_at(folder, "../x.safetensors")


@case("/x.safetensors", "plain names", shard_bytes=20_000)
def index_names_an_absolute_path(folder):
    point_index_at(folder, "/x.safetensors")


@case("evil.so", NORM, "no .safetensors file", shard_bytes=20_000)
def index_names_another_kind_of_file(folder):
    point_index_at(folder, "evil.so")


@case(INDEX, "no weight_map", shard_bytes=20_000)
def index_without_a_map(folder):
    change_json(folder / INDEX, weight_map=None)


@case(WEIGHTS, INDEX, "both", shard_bytes=20_000)
def index_beside_a_single_file(folder):
    shards_of(folder)[0].rename(folder / WEIGHTS)


@case("neither", WEIGHTS, INDEX, shard_bytes=20_000)
def shards_without_an_index(folder):
    (folder / INDEX).unlink()


# Things that are no files of weights


@case(WEIGHTS, "pipe")
def pipe_instead_of_a_file(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@case(WEIGHTS, "link", "leaves")
def link_out_of_the_folder(folder):
    outside = folder.parent / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


@case("pytorch_model.bin", "run code", "safetensors")
def weights_in_an_unsafe_format_only(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@case("no weights")
def no_weights(folder):
    (folder / WEIGHTS).unlink()


@case("GGUF file model.gguf", "path of that file")
def gguf_in_a_folder(folder):
    (folder / WEIGHTS).rename(folder / "model.gguf")


@case("no config.json", "GGUF file model.GGUF", "path of that file")
def gguf_alone_in_a_folder(folder):
    (folder / WEIGHTS).rename(folder / "model.GGUF")
    (folder / "config.json").unlink()


@case("config.json", "pipe")
def pipe_instead_of_a_config(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@case("config.json", "lists hidden_size twice")
def config_with_a_key_twice(folder):
    file = folder / "config.json"
    file.write_text('{"hidden_size": 3,' + file.read_text()[1:])


@case(INDEX, "lists a twice", shard_bytes=20_000)
def index_with_a_key_twice(folder):
    (folder / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}')


@case(WEIGHTS, "half of a UTF-16 pair under a")
def header_with_half_a_character(folder):
    write_parts(folder / WEIGHTS, b'{"a": "\\udc00"}', b"")


@pytest.fixture(scope="module")
def messages(model, tmp_path_factory):
    """Damage a folder in every way, and collect what loading says."""
    intact = {}
    for _, _, weight_format, shard_bytes in CASES.values():
        if (weight_format, shard_bytes) not in intact:
            folder = tmp_path_factory.mktemp("intact") / "model"
            save(model, folder, weight_format=weight_format, max_shard_bytes=shard_bytes)
            load(folder)
            intact[weight_format, shard_bytes] = folder
    messages = {}
    with pytest.MonkeyPatch.context() as patch:
        # Reserving memory for tensors is where loading begins.
        patch.setattr(Assembly, "allocate", lambda *_: pytest.fail("took memory"))
        for name, (damage, _, *kind) in CASES.items():
            folder = tmp_path_factory.mktemp("damaged") / "model"
            shutil.copytree(intact[tuple(kind)], folder)
            damage(folder)
            messages[name] = message_of(folder).replace(str(folder), "FOLDER")
    return messages


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_folder_is_refused_by_name_before_memory_is_taken(name, messages):
    message = messages[name]
    assert "FOLDER" in message
    for words in CASES[name][1]:
        assert words in message
    assert "\n" not in message
    assert len(message) < 1_000


def test_every_damage_has_a_message_of_its_own(messages):
    assert len(set(messages.values())) == len(messages) >= 45


@pytest.mark.parametrize("seed", range(3))
def test_a_header_with_random_bytes_in_it_is_refused_or_read_and_nothing_else(
    model, tmp_path, seed
):
    folder = tmp_path / "model"
    save(model, folder, weight_format="fp8")
    file = folder / WEIGHTS
    intact = file.read_bytes()
    end = 8 + int.from_bytes(intact[:8], "little")
    draw = random.Random(seed)
    refused = 0
    for _ in range(60):
        content = bytearray(intact)
        content[draw.randrange(end)] = draw.randrange(256)
        file.write_bytes(content)
        try:
            load(folder)
        except CheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [UP, NORM, "model.layers.1.mlp.gate.e_score_correction_bias"])
def test_not_finite_weights_are_found_on_request(model, tmp_path, name, value):
    folder = tmp_path / "model"
    save(model, folder)

    def poison(tensors):
        tensors[name].view(-1)[5] = value

    change_tensors(folder / WEIGHTS, poison)
    load(folder)
    assert f"{WEIGHTS} holds NaN or infinity in {name}." in message_of(folder, check_finite=True)


def test_a_not_finite_scale_is_found_on_request(model, tmp_path):
    folder = tmp_path / "model"
    save(model, folder, weight_format="fp8")

    def poison(tensors):
        tensors[SCALE][0, 0] = float("inf")

    change_tensors(folder / WEIGHTS, poison)
    load(folder)
    assert UP in message_of(folder, check_finite=True)


@pytest.mark.parametrize("unreadable", ["", "config.json", WEIGHTS])
def test_what_may_not_be_read_is_named(model, tmp_path, monkeypatch, unreadable):
    folder = tmp_path / "model"
    save(model, folder)
    deny(monkeypatch, folder / unreadable)
    message = message_of(folder)
    assert message == f"{folder / unreadable} cannot be read: Permission denied."


def test_a_path_that_is_neither_folder_nor_gguf(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "neither a model folder nor a .gguf file" in message_of(tmp_path / "model.safetensors")
