import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.data.document import Document
from ziphius.data.fim import Cut, Fim, arrange, cut
from ziphius.text.special import FIM_BEGIN, FIM_END, FIM_HOLE
from ziphius.text.tokenizer import Tokenizer

ALWAYS = Fim(rate=1.0, spm_share=0.5)


@examples(100)
@given(text=st.text(), key=st.text())
def test_the_pieces_are_the_document(text: str, key: str) -> None:
    pieces = cut(Document(key, text, is_code=True), ALWAYS)
    assert pieces is not None
    assert pieces.prefix + pieces.middle + pieces.suffix == text


def test_a_cut_depends_on_seed_and_key_alone() -> None:
    document = Document("a.py", "x = 1\n" * 50, is_code=True)
    assert cut(document, ALWAYS) == cut(document, ALWAYS)
    others = [
        cut(document, Fim(1.0, 0.5, seed=1)),
        cut(Document("b.py", *["x = 1\n" * 50, True]), ALWAYS),
    ]
    assert cut(document, ALWAYS) not in others


def test_the_rates_are_kept() -> None:
    fim = Fim(rate=0.5, spm_share=0.25)
    cuts = [cut(Document(f"{n}.py", "abc", is_code=True), fim) for n in range(4_000)]
    made = [pieces for pieces in cuts if pieces is not None]
    assert 1_850 < len(made) < 2_150
    assert 400 < sum(pieces.order == "spm" for pieces in made) < 600


def test_only_code_is_cut() -> None:
    assert cut(Document("a.txt", "text"), ALWAYS) is None
    assert cut(Document("a.py", "text", is_code=True), Fim()) is None


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("psm", (FIM_BEGIN, "pre", FIM_HOLE, "suf", FIM_END, "mid")),
        ("spm", (FIM_BEGIN, FIM_HOLE, "suf", FIM_END, "pre", "mid")),
    ],
)
def test_the_orders_are_those_of_the_family(
    tokenizer: Tokenizer, order: str, expected: tuple[str, ...]
) -> None:
    pieces = Cut("pre", "mid", "suf", order)  # type: ignore[arg-type]
    ids = arrange(pieces, tokenizer.encode, tokenizer)
    assert ids == [
        i
        for part in expected
        for i in (
            [tokenizer.token_id(part)] if tokenizer.has_token(part) else tokenizer.encode(part)
        )
    ]


@examples(50)
@given(text=st.text(max_size=40), number=st.integers(0, 1_000))
def test_the_document_comes_back_from_the_ids(tokenizer: Tokenizer, text: str, number: int) -> None:
    pieces = cut(Document(f"{number}.py", text, is_code=True), ALWAYS)
    assert pieces is not None
    spelled = tokenizer.decode(arrange(pieces, tokenizer.encode, tokenizer))
    head, end = spelled.removeprefix(FIM_BEGIN).split(FIM_HOLE, 1)
    suffix, rest = end.split(FIM_END, 1)
    if pieces.order == "spm":
        assert (head, rest + suffix) == ("", text)
    else:
        assert head + rest + suffix == text
