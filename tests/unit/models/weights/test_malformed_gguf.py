"""Damaged, lying and hostile GGUF files: each refused by name, before memory is taken."""

import os
import random

import pytest

from tests.denied import deny
from tests.tiny import build, grouped_config
from tests.unit.models.weights.files import write_gguf
from ziphius.core.errors import CheckpointError
from ziphius.models.weights import load
from ziphius.models.weights.assembly import Assembly

CASES = {}


def case(*named):
    def register(damage):
        CASES[damage.__name__] = (damage, named)
        return damage

    return register


@case("truncated", "output")
def gguf_truncated_data(file):
    file.write_bytes(file.read_bytes()[:-200])


@case("truncated", "header")
def gguf_truncated_header(file):
    file.write_bytes(file.read_bytes()[:300])


@case("does not begin with GGUF")
def gguf_wrong_magic(file):
    file.write_bytes(b"GGML" + file.read_bytes()[4:])


@case("version 9")
def gguf_unknown_version(file):
    content = file.read_bytes()
    file.write_bytes(content[:4] + (9).to_bytes(4, "little") + content[8:])


@case(str(2**62))
def gguf_of_2_to_the_62_tensors(file):
    content = file.read_bytes()
    file.write_bytes(content[:8] + (2**62).to_bytes(8, "little") + content[16:])


@case("is truncated: an array goes on")
def gguf_vocabulary_without_end(file):
    key = b"tokenizer.ggml.tokens"
    content = bytearray(file.read_bytes())
    at = content.index(key) + len(key) + 4 + 4
    content[at : at + 8] = (2**61).to_bytes(8, "little")
    file.write_bytes(content)


@case("bytes after", "output")
def gguf_surplus_data(file):
    with file.open("ab") as stream:
        stream.write(bytes(500))


def change_number(file, after, offset, number, size=8):
    content = bytearray(file.read_bytes())
    at = content.index(after) + len(after) + offset
    content[at : at + size] = number.to_bytes(size, "little")
    file.write_bytes(content)


@case("output_norm.weight", "unknown format number 99")
def gguf_unknown_format(file):
    change_number(file, b"output_norm.weight", 4 + 8, 99, size=4)


@case("output_norm.weight", "IQ2_XXS", "known are F32")
def gguf_format_that_is_not_read(file):
    change_number(file, b"output_norm.weight", 4 + 8, 16, size=4)


@case("output_norm.weight", "does not end in it")
def gguf_tensor_out_of_the_file(file):
    change_number(file, b"output_norm.weight", 4 + 8 + 4, 2**40)


@case("output_norm.weight", "gap or an overlap")
def gguf_tensor_over_another(file):
    change_number(file, b"output_norm.weight", 4 + 8 + 4, 0)


@case("output_norm.weight", "9 dimensions")
def gguf_nine_dimensions(file):
    change_number(file, b"output_norm.weight", 0, 9, size=4)


@case("output_norm.weight", "no whole F32")
def gguf_tensor_of_no_numbers(file):
    change_number(file, b"output_norm.weight", 4, 0)


@case("general.architecture", "twice")
def gguf_key_twice(file):
    content = file.read_bytes()
    entry_end = content.index(b"llama", 24) + len(b"llama")
    count = int.from_bytes(content[16:24], "little") + 1
    entry = content[24:entry_end]
    file.write_bytes(content[:16] + count.to_bytes(8, "little") + entry + content[24:])


@case("blk.1.ffn_gate.weight", "twice")
def gguf_tensor_twice(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b"blk.0.ffn_gate.weight", b"blk.1.ffn_gate.weight"))


@case("token_embd.weight", "lacks")
def gguf_without_an_embedding(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b"token_embd.weight", b"token_more.weight"))


@case("unknown type 200")
def gguf_metadata_of_unknown_type(file):
    change_number(file, b"llama.embedding_length", 0, 200, size=4)


@case("is no GGUF file")
def gguf_that_is_safetensors(file):
    file.write_bytes((100).to_bytes(8, "little") + b"{" * 200)


@case("not a regular file")
def gguf_that_is_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


@case("does not exist")
def gguf_that_is_not_there(file):
    file.unlink()


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_gguf_file_is_refused_by_name(name, tmp_path, monkeypatch):
    file = write_gguf(build(grouped_config()), tmp_path / "model.gguf")
    load(file)
    damage, named = CASES[name]
    damage(file)
    monkeypatch.setattr(Assembly, "allocate", lambda *_: pytest.fail("took memory"))
    with pytest.raises(CheckpointError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    for words in named:
        assert words in message


@pytest.mark.parametrize("alignment", [0, 3, 48])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path, alignment):
    metadata = {"general.alignment": alignment}
    file = write_gguf(build(grouped_config()), tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(
        CheckpointError, match=rf"general\.alignment {alignment}, which is no power"
    ):
        load(file)


def test_an_unknown_gguf_architecture_is_refused_by_name(tmp_path):
    file = write_gguf(build(grouped_config()), tmp_path / "model.gguf", arch="mamba")
    with pytest.raises(CheckpointError, match="'mamba'; known are llama, qwen2, qwen3"):
        load(file)


@pytest.mark.parametrize("seed", range(3))
def test_a_header_with_random_bytes_in_it_is_refused_or_read_and_nothing_else(tmp_path, seed):
    file = write_gguf(build(grouped_config()), tmp_path / "model.gguf")
    intact = file.read_bytes()
    # Up to the vocabulary, whose words may be any, and then the list of tensors behind it.
    spans = [
        (0, intact.index(b"tokenizer.ggml.tokens")),
        (intact.index(b"token_embd"), intact.index(b"output.weight")),
    ]
    draw = random.Random(seed)
    refused = 0
    for _ in range(60):
        content = bytearray(intact)
        content[draw.randrange(*draw.choice(spans))] = draw.randrange(256)
        file.write_bytes(content)
        try:
            load(file)
        except CheckpointError:
            refused += 1
    assert refused > 40


def test_a_gguf_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    file = write_gguf(build(grouped_config()), tmp_path / "model.gguf")
    deny(monkeypatch, file)
    with pytest.raises(CheckpointError, match=r"model\.gguf cannot be read: Permission denied"):
        load(file)


def test_an_ending_in_capitals_is_a_gguf_file_too(tmp_path):
    file = write_gguf(build(grouped_config()), tmp_path / "model.GGUF")
    assert load(file).config.hidden_size == grouped_config().hidden_size
