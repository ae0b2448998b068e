import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data.made import make_data, use_corpora
from ziphius.data import baselines as module
from ziphius.data.baselines import PairModel, baselines, bits_per_byte, fit, predicted_pairs
from ziphius.data.batch import Batch
from ziphius.data.config import DataConfig
from ziphius.data.loader import MixLoader
from ziphius.data.prepare import prepare
from ziphius.data.validation import ValidationSet
from ziphius.text.tokenizer import Tokenizer

# After 0 come 1, 1 and 2; after 1 comes 0. Four tokens in the vocabulary.
COUNTED = np.array([[0, 0, 0, 1], [1, 1, 2, 0]])


def toy(smoothing: float, discount: float) -> PairModel:
    return PairModel(
        counts_W=np.array([1, 2, 1, 0]),
        codes=np.array([1, 2, 4]),
        code_counts=np.array([2, 1, 1]),
        before_W=np.array([3, 1, 0, 0]),
        followers_W=np.array([2, 1, 0, 0]),
        smoothing=smoothing,
        discount=discount,
    )


def test_counts_are_those_of_the_pairs() -> None:
    model, expected = fit(COUNTED, COUNTED, 4), toy(0.0, 0.0)
    for name in ("counts_W", "codes", "code_counts", "before_W", "followers_W"):
        assert getattr(model, name).tolist() == getattr(expected, name).tolist()


def test_probabilities_by_hand() -> None:
    model = toy(smoothing=0.5, discount=1.0)
    pairs = np.array([[0, 0, 0, 1, 3], [1, 2, 3, 1, 0]])
    unigram = np.array([2.5, 1.5, 0.5, 2.5, 1.5]) / 6
    assert model.unigram(pairs) == pytest.approx(unigram)
    # l(0) = 3 / (3 + 2), l(1) = 1 / (1 + 1), and after 3, never seen, nothing but the unigram.
    expected = [
        0.6 * 2 / 3 + 0.4 * unigram[0],
        0.6 * 1 / 3 + 0.4 * unigram[1],
        0.6 * 0 + 0.4 * unigram[2],
        0.5 * 0 + 0.5 * unigram[3],
        unigram[4],
    ]
    assert model.bigram(pairs) == pytest.approx(expected)


@pytest.mark.parametrize("before", range(4))
def test_probabilities_sum_to_one(before: int) -> None:
    model = toy(smoothing=0.3, discount=2.0)
    pairs = np.array([[before] * 4, range(4)])
    assert model.unigram(pairs).sum() == pytest.approx(1.0)
    assert model.bigram(pairs).sum() == pytest.approx(1.0)


def test_constants_are_those_that_predict_best() -> None:
    surprising = np.array([[0, 0, 0], [3, 3, 3]])
    assert fit(COUNTED, surprising, 4).smoothing == max(module.SMOOTHINGS)
    assert fit(COUNTED, surprising, 4).discount == max(module.DISCOUNTS)
    assert fit(COUNTED, COUNTED, 4).discount == min(module.DISCOUNTS)


def test_only_predicted_tokens_count() -> None:
    ids_BT = torch.tensor([[1, 2, 3, 4, 9, 9], [5, 6, 7, 8, 9, 9]])
    documents_BT = torch.tensor([[0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 1, 2]])
    assert predicted_pairs(Batch(ids_BT, documents_BT)).tolist() == [
        [1, 3, 5, 6, 7],
        [2, 4, 6, 7, 8],
    ]


def test_constants_are_fitted_on_rows_that_are_not_counted(tmp_path: Path) -> None:
    loader = MixLoader(
        make_data(tmp_path, {"books": [16] * 100}), seq_len=16, seed=0, rows=4, micro_batch_size=4
    )
    counted, fitted = module._training_pairs(loader)
    assert (counted.shape, fitted.shape) == ((2, 97 * 15), (2, 3 * 15))
    assert not set(counted[0].tolist()) & set(fitted[0].tolist())


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2.0) * 10, 10) == pytest.approx(8.0)
    assert bits_per_byte(math.log(2.0), 4) == pytest.approx(0.25)


def loaded(tokenizer: Tokenizer, seed: int = 0) -> tuple[MixLoader, ValidationSet]:
    data = prepare(DataConfig(mix="coder", processes=0), tokenizer)
    loader = MixLoader(data, seq_len=32, seed=seed, rows=4, micro_batch_size=4)
    return loader, ValidationSet(data, seq_len=32, rows=20)


def test_baselines_stand_in_their_order_and_are_kept(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    words = {"general": "the cat sat", "chinese": "on my mat", "code": "x = y + 1"}
    texts = {
        name: [" ".join(random.permutation(line.split() * 9)) for _ in range(300)]
        for name, line in words.items()
    }
    use_corpora(monkeypatch, texts)
    loader, validation = loaded(tokenizer)
    found = baselines(loader, validation)
    assert found.total.uniform == pytest.approx(math.log(tokenizer.vocab_size))
    assert set(found.domains) == {"code", "general", "chinese"}
    for baseline in (found.total, *found.domains.values()):
        assert 0.0 < baseline.bigram < 0.8 * baseline.unigram < baseline.unigram < baseline.uniform
    sums = sum(baseline.bigram * baseline.tokens for baseline in found.domains.values())
    assert sums / found.total.tokens == pytest.approx(found.total.bigram)
    assert found.total.bytes == sum(batch.bytes_count for batch in validation.batches(8))

    monkeypatch.setattr(module, "fit", None)
    assert baselines(loader, validation) == found
    with pytest.raises(TypeError):
        baselines(*loaded(tokenizer, seed=1))


def test_the_validation_text_is_not_looked_at(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random letters cannot be predicted better than by their number, whatever is counted."""
    random = np.random.default_rng(1)
    texts = {
        name: ["".join(random.choice([*"abcdefgh"], 60)) for _ in range(400)]
        for name in ("general", "chinese", "code")
    }
    use_corpora(monkeypatch, texts)
    data = prepare(DataConfig(mix="coder", processes=0, fim_rate=0.0), tokenizer)
    loader = MixLoader(data, seq_len=32, seed=0, rows=4, micro_batch_size=4)
    found = baselines(loader, ValidationSet(data, seq_len=32, rows=200)).total
    # 60 letters of 8 kinds and one sure end; the start is never predicted from what is known.
    assert found.bigram > 0.95 * math.log(8)
