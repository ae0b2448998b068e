"""Vocabularies inside GGUF files, held to the library's own reading of the same vocabulary."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from ziphius.core.assets import fetch
from ziphius.core.errors import TokenizerError
from ziphius.text.byte_level import BYTE_OF_LETTER, tokenizer_json
from ziphius.text.pretokenizers import PRE_TOKENIZERS
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

gguf = pytest.importorskip("gguf")

TOKENS = ["<|end|>", "<|start|>", "<tool>", *BYTE_OF_LETTER, "ab", "abab"]
TYPES = [3, 3, 4] + [1] * 258
MERGES = ["a b", "ab ab"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(path: Path, **changes: Any) -> Path:
    """Write a file with a vocabulary and no tensors; None leaves a key out."""
    values = {
        "model": "gpt2", "pre": "smollm", "tokens": TOKENS, "merges": MERGES, "types": TYPES,
        "bos": 1, "eos": 0, **changes,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    setters = {
        "model": writer.add_tokenizer_model,
        "pre": writer.add_tokenizer_pre,
        "tokens": writer.add_token_list,
        "merges": writer.add_token_merges,
        "types": writer.add_token_types,
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "pad": writer.add_pad_token_id,
        "add_bos": writer.add_add_bos_token,
        "template": writer.add_chat_template,
    }
    for name, value in values.items():
        if value is not None:
            setters[name](value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_everything_a_file_says_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", eot=1, pad=2, add_bos=True, template=CHATML)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (0, 1), 2)
    assert (tokenizer.add_bos, tokenizer.chat_format) == (True, "chatml")
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (261, {0, 1, 2})
    assert tokenizer.encode("<|end|>abab<tool>", allow_special=True) == [0, 260, 2]
    assert not set(tokenizer.encode("<|end|><tool>")) & tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("<|end|>abab \U0001f40b")) == "<|end|>abab \U0001f40b"


def test_a_vocabulary_without_a_pre_tokenizer_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_tokenizer(write(tmp_path / "good.gguf"))
    assert capsys.readouterr().err == ""
    for pre in (None, ""):
        path = write(tmp_path / f"old-{pre}.gguf", pre=pre)
        load_tokenizer(path)
        said = capsys.readouterr().err
        assert f"{path} names no pre-tokenizer (tokenizer.ggml.pre)" in said
        assert "will answer worse" in said


@pytest.mark.parametrize(("pre", "warned"), [("deepseek-v3", False), ("gpt-2", True)])
def test_a_pre_tokenizer_of_another_model_is_warned_of(
    full: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], pre: str, warned: bool
) -> None:
    model = json.loads(full._parts.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)[:30_000]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    path = write(tmp_path / "a.gguf", pre=pre, tokens=tokens, types=types,
                 merges=merges[: len(tokens) - 259], bos=0, eos=1)  # fmt: skip
    load_tokenizer(path)
    said = capsys.readouterr().err
    assert ("of its own vocabulary: it is another model's" in said) is warned


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_each_pre_tokenizer_keeps_all_text(tmp_path: Path, pre: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", pre=pre))
    text = "It's 12345 \u4f60\u597d, \u00c9a\u0301?!  \r\n\n\tx=1 \uac00\uff01\U0001f40b  "
    expected = text.replace("a\u0301", "\u00e1") if "qwen" in pre else text  # NFC
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("deepseek-v3", "a 1234 \u4f60\u597d!b", ["a", " ", "123", "4", " ", "\u4f60\u597d", "!b"]),
        ("deepseek-llm", "a 123\u4f60\n.", ["a", " ", "123", "\u4f60", "\n", "."]),
        ("deepseek-coder", "a 12\u4f60 ()", ["a", " ", "1", "2", "\u4f60", " ()"]),
        ("qwen2", "I'LL 12 \n\nx", ["I", "'LL", " ", "1", "2", " \n\n", "x"]),
        ("deepseek-r1-qwen", "I'LL 12", ["I", "'LL", " ", "1", "2"]),
        ("llama-bpe", "I'LL 1234", ["I", "'LL", " ", "123", "4"]),
        ("smollm", "it's 12", ["it", "'s", " ", "1", "2"]),
        ("gpt-2", "it's 12", ["it", "'s", " 12"]),
        ("default", "a+b 1234", ["a", "+", "b", " ", "123", "4"]),
    ],
)
def test_each_pre_tokenizer_cuts_as_its_family(pre: str, text: str, pieces: list[str]) -> None:
    letters = {letter: i for i, letter in enumerate(BYTE_OF_LETTER)}
    spec = tokenizer_json(letters, [], PRE_TOKENIZERS[pre], [])
    cutter = tokenizers.Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    assert cutter is not None
    found = [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]
    assert found == pieces


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "llama"}, "kind 'llama'; only byte-level"),
        ({"model": None}, "kind None"),
        ({"pre": "nobody"}, "pre-tokenizer 'nobody'; known are deepseek-v3, deepseek-llm"),
        ({"tokens": None}, "no list of strings under tokenizer.ggml.tokens"),
        ({"merges": None}, "no list of strings under tokenizer.ggml.merges"),
        ({"types": None}, "token type for each of its 261 tokens"),
        ({"types": [1]}, "token type for each of its 261 tokens"),
        ({"tokens": [*TOKENS[:-1], "ab"]}, "lists a token twice"),
        ({"bos": 261}, "bos_token_id 261 is no token"),
        ({"merges": ["x y z"]}, "not a tokenizer that can be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    path = write(tmp_path / "bad.gguf", **changes)
    with pytest.raises(TokenizerError, match=match) as caught:
        load_tokenizer(path)
    assert "bad.gguf" in str(caught.value)


def test_a_cut_or_foreign_file_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "good.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    for cut in (0, 3, 4, 20, 60, 200, 1_000, len(data) - 5):
        path.write_bytes(data[:cut])
        with pytest.raises(TokenizerError, match=r"bad\.gguf"):
            load_tokenizer(path)
    path.write_bytes(b"PK\x03\x04" + data[4:])
    with pytest.raises(TokenizerError, match="does not begin with GGUF"):
        load_tokenizer(path)
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "none.gguf")


@pytest.mark.parametrize("item_type", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING])
def test_a_length_that_lies_is_refused_at_once(tmp_path: Path, item_type: int) -> None:
    key = b"tokenizer.ggml.tokens"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    array = struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, item_type, 2**60)
    path = tmp_path / "liar.gguf"
    path.write_bytes(head + array + bytes(64))
    with pytest.raises(TokenizerError, match="is truncated: an array goes on beyond its end"):
        load_tokenizer(path)


def test_a_file_of_junk_lists_is_refused_quickly(tmp_path: Path) -> None:
    entry = struct.pack("<Q", 1) + b"%c" + struct.pack("<IIQ", 9, 8, 1_000_000) + bytes(8_000_000)
    path = tmp_path / "junk.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 5)
    path.write_bytes(head + b"".join(entry.replace(b"%c", b"%d" % i) for i in range(5)))
    with pytest.raises(TokenizerError, match=r"lists more than 4,194,304 items"):
        load_tokenizer(path)


def test_a_list_of_many_numbers_is_stepped_over(tmp_path: Path) -> None:
    data = write(tmp_path / "a.gguf").read_bytes()
    count = int.from_bytes(data[16:24], "little") + 1
    junk = struct.pack("<Q", 4) + b"junk" + struct.pack("<IIQ", 9, 0, 2_000_000) + bytes(2_000_000)
    path = tmp_path / "b.gguf"
    path.write_bytes(data[:16] + count.to_bytes(8, "little") + junk + data[24:])
    assert load_tokenizer(path).vocab_size == 261


def test_a_token_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes().replace(b"<tool>", b"<\xffool>"))
    with pytest.raises(TokenizerError, match=r"a text that is no UTF-8, number 2 of 261"):
        load_tokenizer(path)


def test_a_long_vocabulary_is_kept_whole(tmp_path: Path) -> None:
    more = [f"w{i}" for i in range(2_000)]
    path = write(tmp_path / "a.gguf", tokens=TOKENS + more, types=TYPES + [1] * len(more))
    assert load_tokenizer(path).vocab_size == 2_261


@pytest.mark.net("smollm2-135m-instruct")
def test_smollm2_gives_the_ids_that_transformers_gives() -> None:
    tokenizer = Tokenizer.from_gguf(fetch("smollm2-135m-instruct"))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (49_152, 1, (2,))
    assert (tokenizer.chat_format, tokenizer.add_bos) == ("smollm2", False)
    # Recorded from transformers 5.23 reading the same file, which takes it 19 s.
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("def f(x):\n    return x\n") == [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        198,
    ]
    assert tokenizer.encode("\u4f60\u597d, it's \u00e9!") == [
        18645,
        250,
        48392,
        138,
        28,
        357,
        506,
        26411,
        17,
    ]
    # Digits stand alone in SmolLM2; transformers leaves that out when it reads a GGUF file.
    assert len(tokenizer.encode("2026")) == 4
