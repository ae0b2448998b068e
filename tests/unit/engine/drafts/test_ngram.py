"""Prompt lookup: the latest like place, the longest match first, round and round."""

import random

import pytest

from ziphius.engine.drafts.ngram import NgramProposer, look_up
from ziphius.engine.sequence import Request, SequenceState


def naive(tokens: list[int], count: int, longest: int, shortest: int) -> list[int]:
    """Compare everywhere; copy one token at a time, drafts included."""
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for place in range(len(tokens) - size - 1, -1, -1):
            if tokens[place : place + size] == tokens[len(tokens) - size :]:
                text = list(tokens)
                for _ in range(count):
                    text.append(text[place + size + len(text) - len(tokens)])
                return text[len(tokens) :]
    return []


@pytest.mark.parametrize("vocab", [2, 4, 9])
def test_it_equals_comparing_everywhere(vocab: int) -> None:
    generator = random.Random(vocab)
    found = 0
    for _ in range(300):
        tokens = [generator.randrange(vocab) for _ in range(generator.randrange(1, 30))]
        count, shortest = generator.randrange(1, 9), generator.randrange(1, 4)
        longest = shortest + generator.randrange(3)
        drafts = look_up("".join(map(chr, tokens)), count, longest, shortest)
        assert drafts == naive(tokens, count, longest, shortest)
        found += bool(drafts)
    assert 50 < found < 300


def test_by_hand() -> None:
    text = "abcdXbcYabc"
    assert bytes(look_up(text, 3, 3, 2)) == b"dXb"
    assert bytes(look_up(text, 3, 2, 2)) == b"Yab"
    assert look_up("abcd", 3, 3, 1) == []
    assert bytes(look_up("zzabab", 5, 3, 1)) == b"ababa"


def test_it_follows_a_sequence_and_leaves_out_who_wants_none() -> None:
    proposer = NgramProposer(3, 1)
    one = SequenceState(Request([0xD800, 1, 0x10FFFF, 0xD800], 9), 0, 0)
    other = SequenceState(Request([5, 5], 9), 1, 0)

    def propose(*lengths: int) -> list[list[int]]:
        return proposer.propose([one, other], lengths, lambda *_: [])

    assert propose(2, 0) == [[1, 0x10FFFF], []]
    one.tokens += [7, 1]
    assert propose(1, 2) == [[0x10FFFF], [5, 5]]
    one.tokens += [8]
    assert propose(1, 0) == [[], []]
    proposer.forget(one)
    one.tokens[:] = [3, 4, 3]
    assert propose(2, 0) == [[4, 3], []]
