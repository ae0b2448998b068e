"""What a saved model folder tells other programs: config, tokenizer and generation agree."""

import json
from pathlib import Path

import pytest

from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import load, save
from ziphius.text.byte_level import BYTE_OF_LETTER, added_token, tokenizer_json
from ziphius.text.pretokenizers import QWEN2
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
KEPT = {"temperature": 0.7, "top_p": 0.8, "do_sample": True, "of_tomorrow": [1]}


@pytest.fixture
def base(tmp_path: Path) -> tuple[Model, Tokenizer]:
    """A Qwen base: texts end with <|endoftext|>, ChatML's marks exist, no template says so."""
    folder = tmp_path / "base"
    folder.mkdir()
    letters = {letter: i for i, letter in enumerate(BYTE_OF_LETTER)}
    added = [added_token(256 + i, token, flagged=True) for i, token in enumerate(ADDED)]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(letters, [], QWEN2, added)))
    config = {"eos_token": ADDED[0], "pad_token": ADDED[0], "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({**KEPT, "eos_token_id": 256}))
    shape = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 256}
    model = Model(derive(get_preset("r1-distill-qwen-tiny"), **shape))
    model.initialize(seed=0)
    return model, load_tokenizer(folder)


def said(folder: Path) -> tuple[object, object, object]:
    """Read the end of text out of the three files that name it."""
    names = ("config.json", "generation_config.json", "tokenizer_config.json")
    config, generation, tokenizer = (json.loads((folder / name).read_text()) for name in names)
    assert {key: generation[key] for key in KEPT} == KEPT
    return config["eos_token_id"], generation["eos_token_id"], tokenizer["eos_token"]


def test_a_base_model_stays_what_it_is(base: tuple[Model, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = base
    save(model, tmp_path / "out", tokenizer)
    assert said(tmp_path / "out") == (256, 256, "<|endoftext|>")
    assert "chat_template" not in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_a_model_taught_a_format_ends_as_the_format_does(
    base: tuple[Model, Tokenizer], tmp_path: Path
) -> None:
    model, tokenizer = base
    save(model, tmp_path / "out", tokenizer.with_chat_format("chatml"))
    assert said(tmp_path / "out") == ([258, 256], [258, 256], "<|im_end|>")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in written["chat_template"]
    again = load_tokenizer(tmp_path / "out")
    assert (again.chat_format, again.eos_ids) == ("chatml", (258, 256))
    assert load(tmp_path / "out").config.eos_token_ids == (258, 256)


def test_an_end_without_a_row_of_the_model_is_not_named(
    base: tuple[Model, Tokenizer], tmp_path: Path
) -> None:
    _, tokenizer = base
    shape = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 256}
    model = Model(derive(get_preset("r1-distill-qwen-tiny"), **shape))
    model.initialize(seed=0)
    save(model, tmp_path / "out", tokenizer.with_chat_format("chatml"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256
