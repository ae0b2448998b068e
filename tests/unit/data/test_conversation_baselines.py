import math

import numpy as np
import pytest

from ziphius.data.conversation_baselines import conversation_baselines
from ziphius.data.conversation_encode import EncodedConversation
from ziphius.data.conversations import Conversations


def talks(*rows: list[int]) -> Conversations:
    """Conversations whose first two tokens are the prompt."""
    return Conversations(
        tuple(
            EncodedConversation(np.array(row), np.arange(len(row)) >= 2, bytes_count=1)
            for row in rows
        ),
        seq_len=16,
    )


def test_a_known_successor_is_predicted_by_the_bigram_alone() -> None:
    generator = np.random.default_rng(0)
    rows = [[0, token, 10 + token] for token in generator.integers(0, 10, 2_000).tolist()]
    baselines = conversation_baselines(talks(*rows[:1_800]), talks(*rows[1_800:]), vocab_size=64)
    assert baselines["uniform"] == pytest.approx(math.log(64))
    assert baselines["unigram"] == pytest.approx(math.log(10), rel=0.02)
    assert baselines["bigram"] < 0.1


def test_what_the_prompt_says_is_not_predicted() -> None:
    # The prompt's tokens are unlike one another, the answer is always the same.
    rows = [[token % 50, (token * 7) % 50, 60] for token in range(500)]
    baselines = conversation_baselines(talks(*rows[:450]), talks(*rows[450:]), vocab_size=64)
    assert baselines["unigram"] < 0.05


def test_one_conversation_is_enough_and_none_is_not() -> None:
    one = talks([1, 2, 3])
    assert set(conversation_baselines(one, one, 8)) == {"uniform", "unigram", "bigram"}
    assert conversation_baselines(one, talks(), 8) == {}


def test_baselines_count_only_so_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziphius.data.conversation_baselines.COUNTED_TOKENS", 100)
    known, other = [[0, 1, 2]] * 100, [[0, 1, 3]] * 900
    baselines = conversation_baselines(talks(*known, *other), talks([0, 1, 2]), vocab_size=8)
    assert baselines["unigram"] < 0.1
