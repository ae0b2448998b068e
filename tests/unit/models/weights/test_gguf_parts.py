"""Models that are split into several GGUF files, by the gguf package as llama.cpp does it."""

import shutil

import pytest
import torch

from tests.tiny import build, grouped_config
from tests.unit.models.weights.files import write_gguf
from ziphius.core.errors import CheckpointError, TokenizerError
from ziphius.models.weights import load, read_model_config
from ziphius.text.tokenizer import load_tokenizer

LETTERS = ["a", "b", "c", "ab", "<end>"]
VOCABULARY = {
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": LETTERS,
    "tokenizer.ggml.scores": None,
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 3],
    "tokenizer.ggml.bos_token_id": 4,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 4,
}


@pytest.fixture
def model():
    fields = {"bos_token_id": 4, "eos_token_id": 4, "model_type": "llama"}
    return build(grouped_config(**fields, vocab_size=len(LETTERS)))


@pytest.fixture
def parts(model, tmp_path):
    write_gguf(model, tmp_path / "m.gguf", metadata=VOCABULARY, tensors_per_part=8)
    found = sorted(tmp_path.glob("m-*.gguf"))
    assert [part.name for part in found] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return found


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_part_stands_for_the_whole_model(model, parts, named):
    loaded = load(parts[named])
    assert read_model_config(parts[named]) == model.config == loaded.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert load_tokenizer(parts[named]).encode("abc") == [3, 2]


def test_all_missing_parts_are_told_at_once(parts):
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=r"m-00001-of-00003\.gguf is missing: .* 3 files"):
        load(parts[1])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00001-of-00003\.gguf \(and 1 more\) is missing"):
        load(parts[1])
    with pytest.raises(TokenizerError, match=r"m-00001-of-00003\.gguf does not exist"):
        load_tokenizer(parts[1])


def test_a_part_with_another_name_says_which_name_it_needs(parts):
    renamed = parts[1].rename(parts[1].with_name("second.gguf"))
    with pytest.raises(
        CheckpointError,
        match=r"second\.gguf is part 2 of a model in 3 files.*-00002-of-00003\.gguf",
    ):
        load(renamed)


def test_a_part_in_the_place_of_another_is_refused(parts):
    shutil.copy(parts[1], parts[2])
    with pytest.raises(
        CheckpointError, match=r"m-00003-of-00003\.gguf says that it is part 2 of 3"
    ):
        load(parts[0])


def test_parts_of_two_models_are_not_joined(model, parts, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_gguf(model, other / "m.gguf", metadata=VOCABULARY, tensors_per_part=9)
    shutil.copy(other / "m-00002-of-00003.gguf", parts[1])
    with pytest.raises(CheckpointError, match=r"m-0000\d-of-00003\.gguf holds \S+, which m-0000\d"):
        load(parts[0])


def test_a_part_that_lacks_tensors_is_noticed(parts):
    content = parts[0].read_bytes()
    at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[0].write_bytes(content[:at] + (30).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(CheckpointError, match=r"speaks of 30 tensors in all parts; they hold 21"):
        load(parts[0])


def test_a_truncated_part_is_named(parts):
    parts[1].write_bytes(parts[1].read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is truncated"):
        load(parts[0])
