"""Vocabularies as metadata of GGUF files: they come back, and their cuts get the right name."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.text.byte_level import BYTE_OF_LETTER, tokenizer_json
from ziphius.text.gguf_fields import find_pre_tokenizer
from ziphius.text.pretokenizers import IGNORE_MERGES, NFC_NORMALIZED, PRE_TOKENIZERS
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

SAME_CUTS = {"deepseek-r1-qwen": "qwen2"}


def backend(name: str, **changes: object) -> tokenizers.Tokenizer:
    settings = {
        "ignore_merges": name in IGNORE_MERGES,
        "normalizer": {"type": "NFC"} if name in NFC_NORMALIZED else None,
    }
    vocab = {letter: i for i, letter in enumerate(BYTE_OF_LETTER)}
    spec = tokenizer_json(vocab, [], PRE_TOKENIZERS[name], [], **settings | changes)
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_rules_of_every_name_are_recognised(name: str) -> None:
    assert find_pre_tokenizer(backend(name)) == SAME_CUTS.get(name, name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-bpe", {"ignore_merges": False}),
        ("qwen2", {"normalizer": {"type": "Lowercase"}}),
        ("deepseek-v3", {"normalizer": {"type": "NFC"}}),
    ],
)
def test_rules_without_a_name_are_refused(name: str, changes: dict[str, object]) -> None:
    with pytest.raises(TokenizerError, match=r"none of the names known here .*deepseek-v3"):
        find_pre_tokenizer(backend(name, **changes))


def test_a_normalizer_that_does_nothing_is_none() -> None:
    empty = {"type": "Sequence", "normalizers": []}
    assert find_pre_tokenizer(backend("deepseek-v3", normalizer=empty)) == "deepseek-v3"


def through_a_file(tokenizer: Tokenizer, rows: int, folder: Path) -> Tokenizer:
    writer = gguf.GGUFWriter(folder / "v.gguf", "llama")
    for key, value in tokenizer.gguf_fields(rows).items():
        kind = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        kind.get(type(value), writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.from_gguf(folder / "v.gguf")


@pytest.mark.parametrize("chat_format", ["deepseek-r1", "deepseek-v3.1", "chatml"])
def test_a_vocabulary_comes_back(tmp_path: Path, chat_format: str) -> None:
    first = deepseek_tokenizer(512)
    if first.has_token("<|im_start|>") or chat_format != "chatml":
        first = first.with_chat_format(chat_format)
    again = through_a_file(first, 520, tmp_path)
    text = "It's <think> 1234 caf\u00e9\n\n<\uff5cUser\uff5c>\u6211"
    assert again.encode(text) == first.encode(text)
    assert again.encode(text, allow_special=True) == first.encode(text, allow_special=True)
    assert again.special_tokens == first.special_tokens
    assert again.chat_format == first.chat_format
    assert (again.bos_id, again.pad_id, again.add_bos) == (
        first.bos_id,
        first.pad_id,
        first.add_bos,
    )
    assert again.eos_ids == first.eos_ids
    assert again.vocab_size == 520


def test_what_text_may_make_is_told_from_what_it_may_not() -> None:
    fields = deepseek_tokenizer(512).gguf_fields(514)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    kinds = dict(zip(tokens, types, strict=True))
    named = ("!", "<\uff5cUser\uff5c>", "<think>", "[PAD513]")
    assert [kinds[name] for name in named] == [1, 3, 4, 5]


def test_fewer_rows_than_tokens_are_refused() -> None:
    with pytest.raises(TokenizerError, match="512 tokens and the model 500 rows"):
        deepseek_tokenizer(512).gguf_fields(500)


def test_ends_beyond_the_third_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    parts = deepseek_tokenizer(512)._parts
    added = list(parts.backend.get_added_tokens_decoder().values())
    ends = tuple(token.content for token in added[:4])
    fields = Tokenizer(replace(parts, eos=ends)).gguf_fields(512)
    ids = [fields[f"tokenizer.ggml.{role}_token_id"] for role in ("eos", "eot", "eom")]
    assert ids == [parts.backend.token_to_id(end) for end in ends[:3]]
    assert f"left out: {ends[3]}" in capsys.readouterr().err
