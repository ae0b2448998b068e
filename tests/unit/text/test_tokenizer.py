"""Ids of text, text of ids, and the promise that no text becomes a special token."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.core.errors import TokenizerError
from ziphius.text import special
from ziphius.text.byte_level import added_token, tokenizer_json
from ziphius.text.parts import TokenizerParts
from ziphius.text.pretokenizers import DEEPSEEK_V3, PRE_TOKENIZERS
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

MARKS = [*special.HEAD_TOKENS, *special.TAIL_TOKENS]
PIECES = [
    *MARKS,
    "<",
    ">",
    "\uff5c",
    "\u2581",
    "|",
    "User",
    "think",
    "</",
    " ",
    "\n",
    "\u4f60",
    "7",
]


def nested(mark: str, place: int) -> str:
    """Put a mark into itself, as a filter that strikes marks out once would let through."""
    return mark[:place] + mark + mark[place:]


# Text that spells marks, cuts them, nests them in each other, between anything else.
adversarial = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(max_size=4),
        st.builds(nested, st.sampled_from(MARKS), st.integers(0, 20)),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="session")
def without_special(
    tiny: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tokenizers.Tokenizer:
    """The BPE of `tiny` alone, built from its saved file with all special tokens struck out."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocab = {token: i for token, i in model["vocab"].items() if token not in MARKS}
    return tokenizers.Tokenizer.from_str(
        json.dumps(tokenizer_json(vocab, model["merges"], DEEPSEEK_V3, []))
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=adversarial)
def test_no_text_becomes_a_special_token_and_ids_are_those_of_the_plain_bpe(
    tiny: Tokenizer, without_special: tokenizers.Tokenizer, text: str
) -> None:
    ids = tiny.encode(text)
    assert not set(ids) & tiny.special_ids
    assert ids == without_special.encode(text).ids
    assert tiny.decode(ids) == text
    assert tiny.encode_batch([text, ""]) == [ids, []]


@pytest.mark.parametrize("mark", MARKS)
def test_every_mark_is_a_token_when_allowed_and_text_when_not(
    full: Tokenizer, tiny: Tokenizer, mark: str
) -> None:
    assert tiny.encode(mark, allow_special=True) == [tiny.token_id(mark)]
    assert len(tiny.encode(mark)) > 1
    inside = f"<\uff5cUser{mark}\uff5c>"
    assert not set(full.encode(inside)) & full.special_ids
    assert full.decode(full.encode(inside)) == inside


def test_published_ids_of_the_r1_vocabulary(full: Tokenizer) -> None:
    assert full.encode("Hello, world!") == [19923, 14, 2058, 3]
    assert full.encode("\u4f60\u597d\uff0c\u4e16\u754c 123456") == [
        30594, 303, 3427, 223, 6895, 18009,
    ]  # fmt: skip
    assert full.encode("def f(x):\n    return x**2\n") == [
        3465, 285, 4042, 3395, 361, 1354, 1527, 666, 20, 201,
    ]  # fmt: skip
    chat = f"{special.USER}hi{special.ASSISTANT}{special.THINK}\n"
    assert full.encode(chat, allow_special=True) == [128803, 6366, 128804, 128798, 201]
    assert (full.bos_id, full.eos_ids, full.vocab_size) == (0, (1,), 128_815)
    assert full.special_ids == {0, 1, 2, *range(128_000, 128_815)}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 511), max_size=12))
def test_decode_equals_the_library(tiny: Tokenizer, ids: list[int]) -> None:
    assert tiny.decode(ids) == tiny._parts.backend.decode(ids, skip_special_tokens=False)


def test_skip_special_drops_every_mark(tiny: Tokenizer) -> None:
    text = f"{special.BOS}a{special.USER}b{special.THINK}"
    assert tiny.decode(tiny.encode(text, allow_special=True), skip_special=True) == "ab"


def test_an_id_above_the_vocabulary_shows_as_a_replacement_character(tiny: Tokenizer) -> None:
    assert tiny.decode([512, -1]) == "\ufffd\ufffd"
    with pytest.raises(TokenizerError, match="no token 512: the vocabulary has ids 0 to 511"):
        tiny.id_to_bytes(512)
    with pytest.raises(TokenizerError, match="no token -1"):
        tiny.id_to_bytes(-1)


def test_bytes_of_tokens(tiny: Tokenizer) -> None:
    assert tiny.id_to_bytes(tiny.token_id(special.USER)) == special.USER.encode()
    emoji = tiny.encode("\U0001f40b")
    assert b"".join(map(tiny.id_to_bytes, emoji)) == "\U0001f40b".encode()
    assert len(emoji) > 1


def test_a_missing_token_is_named(tiny: Tokenizer) -> None:
    assert not tiny.has_token("<|im_start|>")
    with pytest.raises(TokenizerError, match=r"no token '<\|im_start\|>'"):
        tiny.token_id("<|im_start|>")
    with pytest.raises(TokenizerError, match="no token 'a'"):
        tiny.token_id("a")  # a piece of text, not an added token


def test_text_that_is_no_unicode_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="at character 2"):
        tiny.encode("ab\ud800")
    with pytest.raises(TokenizerError, match="at character 0"):
        tiny.encode_batch(["ok", "\udfff"])
    with pytest.raises(TokenizerError, match="not bytes"):
        tiny.encode(b"ab")  # type: ignore[arg-type]


def test_the_chat_format_can_be_replaced(tiny: Tokenizer, tmp_path: Path) -> None:
    other = tiny.with_chat_format("deepseek-v3")
    assert (tiny.chat_format, other.chat_format) == ("deepseek-r1", "deepseek-v3")
    other.save(tmp_path)
    assert load_tokenizer(tmp_path).chat_format == "deepseek-v3"


def byte_level(added: list[str], *, merges: list[str], ignore_merges: bool) -> Tokenizer:
    """A vocabulary of the letters of "<ab>", of `merges` and of `added`, which are all marks."""
    vocab = {letter: i for i, letter in enumerate("<ab>")}
    for token in [*("".join(merge.split()) for merge in merges), *added]:
        vocab.setdefault(token, len(vocab))
    marks = [added_token(vocab[token], token, flagged=True) for token in added]
    whole = PRE_TOKENIZERS["gpt-2"] | {"use_regex": False}  # keeps "<ab>" in one piece
    spec = tokenizer_json(vocab, merges, whole, marks, ignore_merges=ignore_merges)
    return Tokenizer(TokenizerParts(tokenizers.Tokenizer.from_str(json.dumps(spec))))


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_special_token_in_plain_letters_cannot_be_taken_whole(ignore_merges: bool) -> None:
    tokenizer = byte_level(["<ab>"], merges=["a b"], ignore_merges=ignore_merges)
    assert [tokenizer.id_to_bytes(i) for i in tokenizer.encode("<ab>")] == [b"<", b"ab", b">"]
    assert tokenizer.encode("<ab>", allow_special=True) == [tokenizer.token_id("<ab>")]


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_an_added_token_that_merges_make_is_an_ordinary_one(ignore_merges: bool) -> None:
    tokenizer = byte_level(["ab", "<ab>"], merges=["a b"], ignore_merges=ignore_merges)
    assert tokenizer.special_ids == {tokenizer.token_id("<ab>")}
    assert tokenizer.encode("ab") == [tokenizer.token_id("ab")]
