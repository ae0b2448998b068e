from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.data.document import Document
from ziphius.data.selection import FEW_DOCUMENTS, choose, draw_sample, with_tails


def stream(name: str, *texts: str) -> Iterator[Document]:
    return (Document(f"{name}/{number}", text) for number, text in enumerate(texts))


def test_the_same_text_is_used_once() -> None:
    skipped: Counter[str] = Counter()
    sources = {"a": stream("a", "one", "two", "one"), "b": stream("b", "two", "three")}
    texts = [document.text for document in choose(sources, 1e9, skipped)]
    assert sorted(texts) == ["one", "three", "two"]
    assert skipped == {"duplicate": 2}


def test_half_a_pair_is_counted_and_left_out() -> None:
    skipped: Counter[str] = Counter()
    found = list(choose({"a": stream("a", "x\ud800", "fine")}, 1e9, skipped))
    assert [document.text for document in found] == ["fine"]
    assert skipped == {"not UTF-8": 1}


def test_sources_take_turns_until_the_limit() -> None:
    sources = {"a": stream("a", *"abcdefgh"), "b": stream("b", "12", "34", "56")}
    keys = [document.key for document in choose(sources, 8, Counter())]
    assert keys == ["a/0", "b/0", "a/1", "a/2", "b/1", "a/3"]


def test_what_one_source_lacks_another_gives() -> None:
    sources = {"a": stream("a", "x"), "b": stream("b", *"1234567")}
    assert len(list(choose(sources, 6, Counter()))) == 6


def test_nothing_is_read_beyond_the_limit() -> None:
    def endless() -> Iterator[Document]:
        number = 0
        while True:
            yield Document(str(number), f"text {number}")
            number += 1

    assert len(list(choose({"a": endless()}, 100, Counter()))) == 16


@examples(100)
@given(lines=st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_the_end_of_a_lone_document_is_held_out(lines: list[int]) -> None:
    text = "".join("a" * length + "\n" for length in lines)
    parts = list(with_tails([Document("a", text)]))
    assert "".join(part.text for part in parts) == text
    assert all(part.text for part in parts)
    assert [part.held_out for part in parts] in ([False, True], [True])
    assert len({part.key for part in parts}) == len(parts)


def test_the_end_begins_with_a_line() -> None:
    text = "".join(f"line {number}\n" for number in range(1_000))
    head, tail = with_tails([Document("a", text)])
    assert head.text.endswith("\n")
    assert 0.01 <= len(tail.text) / len(text) < 0.02


@pytest.mark.parametrize("count", [FEW_DOCUMENTS - 1, FEW_DOCUMENTS, FEW_DOCUMENTS + 3])
def test_many_documents_stay_whole(count: int) -> None:
    found = list(with_tails(stream("a", *[f"text {number}" for number in range(count)])))
    is_cut = any(document.held_out is not None for document in found)
    assert is_cut == (count < FEW_DOCUMENTS)
    assert len(found) == (2 * count if is_cut else count)


@pytest.mark.parametrize("limit", [1, 5_000, 20_000, 10**9])
def test_a_sample_fills_its_limit_from_all_of_the_text(limit: int) -> None:
    documents = [Document(f"a/{n}", f"{n:05d}" + "x" * (n % 90)) for n in range(1_000)]
    sample = draw_sample(documents, limit, seed=0)
    skipped: Counter[str] = Counter()
    taken = list(sample.of(documents, skipped))
    size = sum(len(document.text) for document in taken)
    assert (sample.taken, sample.taken_bytes) == (len(taken), size)
    assert (sample.total, sample.total_bytes) == (1_000, sum(len(d.text) for d in documents))
    assert skipped["not in the sample"] == 1_000 - len(taken)
    if limit == 1:
        assert len(taken) == 1
    elif limit < 10**9:
        assert limit - 94 < size <= limit
        # Of every fifth of the text about as much.
        fifths = Counter(int(document.text[:5]) // 200 for document in taken)
        assert min(fifths.values()) > 0.6 * len(taken) / 5
    else:
        assert taken == documents


def test_a_larger_sample_holds_the_smaller_and_another_seed_is_another() -> None:
    documents = [Document(f"a/{n}", "x" * 10) for n in range(500)]
    few, more, other = (
        {d.key for d in draw_sample(documents, limit, seed).of(documents, Counter())}
        for limit, seed in ((1_000, 0), (2_000, 0), (1_000, 1))
    )
    assert len(few) == len(other) == 100
    assert few < more
    assert few != other
