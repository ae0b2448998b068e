"""Conversations on disk are those in memory, made once, whatever made them."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ziphius.core.errors import ConfigError
from ziphius.data import conversation_encode, conversation_shards
from ziphius.data.conversation_config import ConversationSources
from ziphius.data.conversation_encode import Encoding
from ziphius.data.conversation_shards import PreparedConversations, prepare_conversations
from ziphius.data.conversations import ConversationLoader, encode_conversations
from ziphius.data.errors import DataError
from ziphius.data.messages import is_held_out, read_conversations
from ziphius.data.shards import ShardWriter
from ziphius.text.chat import get_chat_format
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
ENCODING = Encoding(64)

pytestmark = pytest.mark.usefixtures("cache")


def talk(question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def sums(path: Path, count: int = 40) -> Path:
    return written(path, *(talk(f"{i}+{i}?", f"{2 * i}" * (1 + i % 5)) for i in range(count)))


def prepare(
    *data: Path, encoding: Encoding = ENCODING, tokenizer: Tokenizer = TOKENIZER, **more: Any
) -> PreparedConversations:
    options = {"chat_format": more.pop("chat_format", "deepseek-v3"), "say": more.pop("say", None)}
    sources = ConversationSources(data, **more)
    return prepare_conversations(sources, encoding, tokenizer, **options)


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "tokens").glob("conversations-*"))


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is read."""
    counts = Counter[str]()

    def read(path: Path, report: Any) -> Any:
        counts[path.name] += 1
        return read_conversations(path, report)

    monkeypatch.setattr(conversation_shards, "read_conversations", read)
    return counts


@pytest.mark.parametrize("processes", [1, 2])
def test_they_are_those_in_memory_whatever_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    data = sums(tmp_path / "sums.jsonl")
    read = list(read_conversations(data))
    learned = [one for one in read if not is_held_out(one, 0.3)]
    expected = encode_conversations(learned, TOKENIZER, get_chat_format("deepseek-v3"), ENCODING)
    if processes == 2:
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(conversation_encode, "CHUNK_CONVERSATIONS", 7)
        monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (100,))
    found = prepare(data, hold_out=0.3)
    assert 0 < len(found.held_out.kept) == len(read) - len(learned)
    assert found.learned.fingerprint == expected.fingerprint
    assert found.learned.loss_tokens == expected.loss_tokens
    assert found.learned.longest == expected.longest
    for ours, theirs in zip(found.learned.kept, expected.kept, strict=True):
        assert ours.ids_T.tolist() == theirs.ids_T.tolist()
        assert ours.loss_mask_T.dtype == np.bool_
        assert ours.loss_mask_T.tolist() == theirs.loss_mask_T.tolist()
        assert ours.bytes_count == theirs.bytes_count
    loaders = (
        ConversationLoader(one, seed=0, epochs=2, rows=2, micro_batch_size=2)
        for one in (found.learned, expected)
    )
    ours, theirs = (loader.batch(1, 0, 0, 1) for loader in loaders)
    assert (ours.ids_BT == theirs.ids_BT).all()
    assert (ours.loss_mask_BT == theirs.loss_mask_BT).all()
    assert ours.bytes_count == theirs.bytes_count


def test_a_second_start_reads_nothing_and_says_the_same(
    tmp_path: Path, reading: Counter[str], cache: Path
) -> None:
    bad = [{"messages": 1}] * 12
    data = written(tmp_path / "a.jsonl", *bad, *(talk("a", "b") for _ in range(50)))
    said: list[list[str]] = [[], []]
    first, second = (
        prepare(data, max_bad_share=0.5, say=lines.append, hold_out=0.1) for lines in said
    )
    assert reading == {"a.jsonl": 1}
    assert len(folders(cache)) == 1
    assert said[0] == said[1]
    assert [line[:9] for line in said[0]] == ["Skipped: "] * 11
    assert said[0][-1] == "Skipped: 2 more rows."
    assert first.learned.fingerprint == second.learned.fingerprint
    assert (second.report.read, second.report.skipped) == (62, 12)


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": Encoding(60)},
        {"encoding": Encoding(64, "cut")},
        {"chat_format": "deepseek-r1"},
        {"tokenizer": deepseek_tokenizer(600)},
        {"hold_out": 0.2},
        {"most": 3},
        {"strict": True},
    ],
)
def test_whatever_they_depend_on_makes_them_anew(
    tmp_path: Path, reading: Counter[str], change: dict[str, Any]
) -> None:
    data = sums(tmp_path / "sums.jsonl")
    for _ in range(2):
        prepare(data)
    before = reading.total()
    prepare(data, **change)
    assert before == 1
    assert reading.total() > 1


def test_a_changed_file_is_read_anew(tmp_path: Path, reading: Counter[str]) -> None:
    data, held_out = sums(tmp_path / "sums.jsonl"), sums(tmp_path / "held_out.jsonl", 5)
    assert len(prepare(data, validation=held_out).held_out.kept) == 5
    sums(held_out, 6)
    assert len(prepare(data, validation=held_out).held_out.kept) == 6
    assert reading == {"sums.jsonl": 2, "held_out.jsonl": 2}


def test_what_is_refused_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    data = written(tmp_path / "a.jsonl", talk("a", "b"), {"messages": 1})
    with pytest.raises(DataError, match="line 2: must be"):
        prepare(data, strict=True)
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        prepare(data, max_bad_share=0.1)
    with pytest.raises(DataError, match=r"nothing\.jsonl cannot be read"):
        prepare(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="line 1: 407 tokens, and a row has 64"):
        prepare(written(data, talk("a", "b" * 402)), encoding=Encoding(64, "refuse"))
    with pytest.raises(ConfigError, match="names no chat format"):
        prepare(data, chat_format=None, tokenizer=TOKENIZER.with_chat_format(None))
    assert not any(cache.glob("**/*.bin"))


def test_damaged_ones_are_named(tmp_path: Path, cache: Path) -> None:
    data = sums(tmp_path / "sums.jsonl")
    prepare(data)
    [mask] = cache.glob("**/train-loss_mask-00000.bin")
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is damaged \(train-loss_mask-00000.bin has \d+ bytes\)"):
        prepare(data)


def test_a_limit_is_a_random_sample_and_said(tmp_path: Path) -> None:
    data = sums(tmp_path / "sums.jsonl", 200)
    everyone = [entry.ids_T.tolist() for entry in prepare(data).learned.kept]
    found = {most: prepare(data, most=most) for most in (20, 50, 200)}
    samples = {
        most: [everyone.index(entry.ids_T.tolist()) for entry in one.learned.kept]
        for most, one in found.items()
    }
    assert [len(sample) for sample in samples.values()] == [20, 50, 200]
    assert set(samples[20]) < set(samples[50])
    # From all of the file, not from its beginning.
    assert 60 < np.mean(samples[50]) < 140
    assert max(samples[20]) > 100
    assert "Of 200 conversations 20 are learned, a random sample" in found[20].notes[0]
    assert found[200].notes == ()


@pytest.mark.parametrize(("answer", "spoken"), [("4", "deepseek-v3"), ("<think>x</think>4", "r1")])
def test_data_without_reasoning_take_a_format_without_a_think_block(
    tmp_path: Path, reading: Counter[str], answer: str, spoken: str
) -> None:
    data = written(tmp_path / "a.jsonl", talk("2+2?", "4"), talk("1+3?", answer))
    thinking = TOKENIZER.with_chat_format("deepseek-r1")
    for _ in range(2):
        found = prepare(data, chat_format=None, tokenizer=thinking)
        assert str(found.tokenizer.chat_format).endswith(spoken)
    assert reading == {"a.jsonl": 2}  # once to look, once to encode
