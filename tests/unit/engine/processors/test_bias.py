"""`engine/processors/bias.py`: what a request favours or forbids."""

import torch

from ziphius.engine.processors.bias import BadWords, LogitBias, MinTokens, bad_word_ids
from ziphius.text.vocabulary import deepseek_tokenizer


def masked(processor: BadWords | MinTokens, token_ids: list[int], width: int = 12) -> list[int]:
    logits_W = torch.zeros(width)
    processor(logits_W, token_ids)
    return (logits_W == -torch.inf).nonzero().flatten().tolist()


def test_biases_are_added() -> None:
    logits_W = torch.ones(6)
    LogitBias(((1, 2.5), (4, -100.0)))(logits_W, [])
    assert logits_W.tolist() == [1.0, 3.5, 1.0, 1.0, -99.0, 1.0]


def test_the_last_token_of_a_bad_word_is_masked() -> None:
    words = BadWords([(3,), (5, 6), (5, 6, 7), (6, 6, 6)])
    assert masked(words, []) == [3]
    assert masked(words, [5]) == [3, 6]
    assert masked(words, [6, 5]) == [3, 6]
    assert masked(words, [5, 6]) == [3, 7]
    assert masked(words, [6, 6]) == [3, 6]
    assert masked(words, [6]) == [3]


def test_stops_wait_for_the_shortest_length() -> None:
    processor = MinTokens(2, [1, 9])
    assert masked(processor, []) == [1, 9]
    assert masked(processor, [4]) == [1, 9]
    assert masked(processor, [4, 4]) == []


def test_bad_words_are_spelled_with_and_without_a_space() -> None:
    tokenizer = deepseek_tokenizer(4096)
    found = bad_word_ids(tokenizer, ["the", " the", "</think>"])
    assert found[0] == tuple(tokenizer.encode("the"))
    assert found[1] == tuple(tokenizer.encode(" the"))
    assert len(found) == 4  # the second word adds nothing
    assert tokenizer.special_ids.isdisjoint({i for word in found for i in word})
