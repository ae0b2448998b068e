"""Streaming text out of tokens."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.text.tokenizer import Tokenizer


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 511), max_size=20))
def test_pieces_join_to_decode(tiny: Tokenizer, ids: list[int]) -> None:
    stream = tiny.detokenizer()
    pieces = [stream.push(token_id) for token_id in ids]
    whole = b"".join(tiny.id_to_bytes(i) for i in ids).decode("utf-8", errors="replace")
    assert "".join(pieces) + stream.flush() == whole == tiny.decode(ids)


def test_a_character_comes_out_with_its_last_byte(tiny: Tokenizer) -> None:
    stream = tiny.detokenizer()
    pieces = [stream.push(token_id) for token_id in tiny.encode("\U0001f40b!")]
    assert pieces[:-2] == [""] * (len(pieces) - 2)
    assert pieces[-2:] == ["\U0001f40b", "!"]


def test_half_a_character_comes_out_at_the_end(tiny: Tokenizer) -> None:
    stream = tiny.detokenizer()
    assert stream.push(tiny.encode("\U0001f40b")[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(tiny.encode("a")[0]) == "a"


def test_the_work_per_token_does_not_grow(tiny: Tokenizer) -> None:
    stream, [token_id] = tiny.detokenizer(), tiny.encode("a")

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            stream.push(token_id)
        return time.perf_counter() - start

    first = min(seconds(2_000) for _ in range(5))
    seconds(100_000)
    assert min(seconds(2_000) for _ in range(5)) < 10 * first
