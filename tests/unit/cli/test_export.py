"""`ziphius export`: the folder it writes, what it prints, and what it refuses."""

import json

import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config
from tests.unit.models.weights.files import write_gguf
from ziphius.cli.export import ExportConfig, export
from ziphius.cli.inspect import InspectConfig, inspect
from ziphius.cli.main import COMMANDS
from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.models.weights import load, save
from ziphius.text.tokenizer import load_tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

CONFIG = latent_config(**V3_EXPERTS, num_nextn_predict_layers=1, vocab_size=512)


@pytest.fixture
def source(tmp_path):
    save(build(CONFIG), tmp_path / "source", deepseek_tokenizer(512), weight_format="float32")
    return tmp_path / "source"


def states(folder):
    return load(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("weight_format", ["bfloat16", "float32", "fp8", "fp8-ue8m0"])
def test_it_writes_what_saving_the_model_would(source, tmp_path, weight_format):
    export(ExportConfig(model=source, out=tmp_path / "out", weight_format=weight_format))
    save(load(source), tmp_path / "expected", deepseek_tokenizer(512), weight_format=weight_format)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in (tmp_path / "expected").iterdir()}
    for name in names:
        expected = (tmp_path / "expected" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected, name


def test_fp8_is_widened_without_a_loss(source, tmp_path):
    export(ExportConfig(model=source, out=tmp_path / "fp8", weight_format="fp8"))
    export(ExportConfig(model=tmp_path / "fp8", out=tmp_path / "wide", weight_format="float32"))
    wide = states(tmp_path / "wide")
    assert all(torch.equal(tensor, wide[name]) for name, tensor in states(tmp_path / "fp8").items())


def test_it_prints_a_table_and_the_path(source, tmp_path, capsys):
    export(ExportConfig(model=source, out=tmp_path / "out"))
    printed = capsys.readouterr().out
    for words in ("deepseek_v3", "bfloat16", "written", f"Saved in {tmp_path / 'out'}"):
        assert words in printed


def test_json_is_the_only_thing_on_stdout(source, tmp_path, capsys):
    limit = "20KB"
    export(ExportConfig(model=source, out=tmp_path / "out", max_shard_size=limit, as_json=True))
    result = json.loads(capsys.readouterr().out)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert result["weight_files"] == len(files) > 1
    assert result["weight_bytes"] == sum(file.stat().st_size for file in files)
    assert result["parameters"] == sum(p.numel() for p in build(CONFIG).parameters())
    assert result["tokenizer"] is True


def test_a_folder_without_a_tokenizer_is_exported_and_said_to_have_none(tmp_path, capsys):
    save(build(CONFIG), tmp_path / "source")
    export(ExportConfig(model=tmp_path / "source", out=tmp_path / "out"))
    assert "none in the source" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_mtp_layers_are_left_out_on_request(source, tmp_path):
    export(ExportConfig(model=source, out=tmp_path / "out", drop_mtp=True))
    assert load(tmp_path / "out").config.num_nextn_predict_layers == 0


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_tokenizer_with_more_tokens_than_rows_is_refused_or_given_rows(tmp_path, name):
    source, out = tmp_path / "source", tmp_path / name
    narrow = LLAMA.model_copy(update={"vocab_size": 500})
    save(build(narrow), source, deepseek_tokenizer(512), weight_format="float32")
    message = r"has 512 tokens, the model only 500 rows .* \(--resize-embeddings\)"
    with pytest.raises(ConfigError, match=message):
        export(ExportConfig(model=source, out=out))
    assert not out.exists()
    export(ExportConfig(model=source, out=out, resize_embeddings=True))
    assert load(out).config.vocab_size == 512


def test_a_source_that_is_not_there_and_a_target_that_is(source, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        export(ExportConfig(model=tmp_path / "nowhere", out=tmp_path / "out"))
    with pytest.raises(OutputError, match="not empty"):
        export(ExportConfig(model=source, out=source))


def test_a_size_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_shard_size"):
        ExportConfig(model=tmp_path, out=tmp_path, max_shard_size="5 apples")


def test_a_gguf_file_is_exported(tmp_path, monkeypatch):
    # Its vocabulary is a made-up one; the tokenizer room reads real ones.
    monkeypatch.setattr("ziphius.text.tokenizer.load_tokenizer", lambda path: None)
    model = build(grouped_config(max_position_embeddings=64))
    file = write_gguf(model, tmp_path / "model.gguf")
    export(ExportConfig(model=file, out=tmp_path / "out", weight_format="float32"))
    state = states(tmp_path / "out")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


LLAMA = grouped_config(vocab_size=512, hidden_size=64, intermediate_size=96, num_attention_heads=8)


@pytest.fixture
def llama(tmp_path):
    save(build(LLAMA), tmp_path / "llama", deepseek_tokenizer(512), weight_format="float32")
    return tmp_path / "llama"


def test_a_folder_becomes_a_gguf_file_and_a_folder_again(llama, tmp_path, capsys):
    out = tmp_path / "new" / "out.gguf"
    export(ExportConfig(model=llama, out=out, weight_format="float32", as_json=True))
    result = json.loads(capsys.readouterr().out)
    assert result["tensors"] == {"F32": 21}
    assert (result["weight_files"], result["weight_bytes"]) == (1, out.stat().st_size)
    export(ExportConfig(model=out, out=tmp_path / "again", weight_format="float32"))
    again = states(tmp_path / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in states(llama).items())
    first, last = load_tokenizer(llama), load_tokenizer(tmp_path / "again")
    assert first.encode("a b") == last.encode("a b")
    assert (first.eos_ids, first.add_bos) == (last.eos_ids, last.add_bos)


def test_the_list_of_commands_names_both_kinds_of_output():
    assert COMMANDS["export"].endswith("a Hugging Face folder or a GGUF file")


def test_blocks_are_counted_in_the_table(llama, tmp_path, capsys):
    export(ExportConfig(model=llama, out=tmp_path / "out.gguf", weight_format="q4_0"))
    assert "2 Q8_0, 5 F32, 14 Q4_0" in capsys.readouterr().out


def test_mtp_layers_do_not_go_into_a_gguf_file(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out.gguf"
    save(build(CONFIG), source, deepseek_tokenizer(512), weight_format="float32")
    with pytest.raises(ConfigError, match=r"num_nextn_predict_layers = 1: .*--drop-mtp"):
        export(ExportConfig(model=source, out=out, weight_format="float32"))
    export(ExportConfig(model=source, out=out, weight_format="float32", drop_mtp=True))


@pytest.mark.parametrize(
    ("out", "weight_format", "wanted"),
    [
        ("out.gguf", "fp8", "a GGUF file takes bfloat16.*OUT has to be a folder"),
        ("out", "q8_0", "a folder takes bfloat16.*OUT has to be a name that ends in .gguf"),
        ("out", "float16", "a folder takes"),
    ],
)
def test_formats_of_folders_and_files_are_told_apart(tmp_path, out, weight_format, wanted):
    with pytest.raises(ValueError, match=f"weight_format = {weight_format}: {wanted}"):
        ExportConfig(model=tmp_path, out=tmp_path / out, weight_format=weight_format)


def test_what_a_gguf_file_cannot_have_is_refused(llama, tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="max_shard_size = 1GB has no effect"):
        ExportConfig(model=llama, out=out, max_shard_size="1GB")
    save(build(LLAMA), tmp_path / "bare")
    with pytest.raises(CheckpointError, match="bare holds no tokenizer"):
        export(ExportConfig(model=tmp_path / "bare", out=out))
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"out\.gguf is there already"):
        export(ExportConfig(model=llama, out=out))
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["c[bold]", "o[/p]"])
def test_brackets_in_a_path_are_printed_as_they_are(source, tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    export(ExportConfig(model=source, out=tmp_path / name))
    export(ExportConfig(model=tmp_path / name, out=tmp_path / "out"))
    assert f"Saved in {tmp_path / name}" in capsys.readouterr().out
    inspect(InspectConfig(model=str(tmp_path / name)))
    assert name.partition("[")[2] in capsys.readouterr().out.replace("\n", "")
