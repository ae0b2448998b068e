"""What a loss has to beat: models that know nothing, single tokens, or pairs of tokens.

Three cross-entropies of the validation rows, in nats per predicted token:

    uniform   ln(vocabulary)
    unigram   p(w) = (c(w) + k) / (n + k W)
    bigram    p(w | v) = l(v) c(v, w) / c(v) + (1 - l(v)) p(w),   l(v) = c(v) / (c(v) + t d(v))

with the counts c of training rows, d(v) the number of different tokens seen after v (Witten and
Bell's discount) and W the vocabulary. k and t are fitted on training rows that are not counted:
nothing has seen the text it is measured on, so the figures are those of real, if humble, models and
not entropies that no model could reach. A target whose predecessor is in another document is not
predicted, here as in training.

Shapes: B rows, T tokens, W vocabulary.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ziphius.core.assets import cache_folder
from ziphius.core.config import Config
from ziphius.core.files import write_file
from ziphius.data.batch import Batch
from ziphius.data.loader import MixLoader
from ziphius.data.validation import ValidationSet

COUNTED_TOKENS = 8_000_000
FITTED_SHARE = 0.03
SMOOTHINGS = (0.003, 0.03, 0.3)
DISCOUNTS = (0.25, 0.5, 1.0, 2.0, 4.0)

Pairs = NDArray[np.int64]
"""Predecessors and targets, [2, predicted tokens]."""


class Baseline(Config):
    """Cross-entropies of some validation text, in nats per predicted token."""

    uniform: float
    """ln(vocabulary)."""
    unigram: float
    """Of single tokens."""
    bigram: float
    """Of pairs of tokens."""
    tokens: int
    """Predicted tokens."""
    bytes: int
    """UTF-8 bytes of the predicted tokens."""


class Baselines(Config):
    """Baselines of the whole validation set and of each of its domains."""

    total: Baseline
    """Over all domains."""
    domains: dict[str, Baseline]
    """By domain."""


def bits_per_byte(loss_sum_nats: float, bytes_count: int) -> float:
    """Turn a summed loss into bits per byte of text, which does not depend on the vocabulary."""
    return loss_sum_nats / math.log(2.0) / bytes_count


def baselines(loader: MixLoader, validation: ValidationSet) -> Baselines:
    """Measure the baselines of a validation set against the rows that the loader trains on.

    The result is kept beside the shards; asking again costs nothing.
    """
    path = _path(loader, validation)
    if path.is_file():
        return Baselines.model_validate_json(path.read_bytes())
    model = fit(*_training_pairs(loader), loader.data.vocab_size)
    pairs: dict[str, list[Pairs]] = {name: [] for name in validation.rows}
    sizes = Counter[str]()
    for batch in validation.batches(64):
        pairs[batch.domains[0]].append(predicted_pairs(batch))
        sizes[batch.domains[0]] += batch.bytes_count
    joined = {name: np.concatenate(parts, axis=1) for name, parts in pairs.items()}
    found = Baselines(
        total=_baseline(model, np.concatenate([*joined.values()], axis=1), sizes.total()),
        domains={name: _baseline(model, part, sizes[name]) for name, part in joined.items()},
    )
    write_file(path, found.model_dump_json(indent=1))
    return found


@dataclass(frozen=True)
class PairModel:
    """Counts of single tokens and pairs, with the two fitted constants."""

    counts_W: NDArray[np.int64]
    codes: NDArray[np.int64]
    """predecessor * W + target of every pair that was seen, sorted."""
    code_counts: NDArray[np.int64]
    before_W: NDArray[np.int64]
    """How often each token was a predecessor."""
    followers_W: NDArray[np.int64]
    """How many different tokens came after each."""
    smoothing: float
    discount: float

    def unigram(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the probability of each target by itself."""
        vocab = len(self.counts_W)
        total = self.counts_W.sum() + self.smoothing * vocab
        result: NDArray[np.float64] = (self.counts_W[pairs[1]] + self.smoothing) / total
        return result

    def bigram(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the probability of each target after its predecessor."""
        before, _ = pairs
        codes = pairs[0] * len(self.counts_W) + pairs[1]
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        seen = np.where(self.codes[places] == codes, self.code_counts[places], 0)
        held = self.discount * self.followers_W[before]
        total = np.maximum(self.before_W[before] + held, 1e-9)
        back_off = np.where(self.before_W[before] > 0, held / total, 1.0)
        result: NDArray[np.float64] = seen / total + back_off * self.unigram(pairs)
        return result


def fit(counted: Pairs, fitted: Pairs, vocab_size: int) -> PairModel:
    """Count pairs, then choose k and after it t so that they predict other pairs best."""
    codes, code_counts = np.unique(counted[0] * vocab_size + counted[1], return_counts=True)
    model = PairModel(
        counts_W=np.bincount(counted[1], minlength=vocab_size),
        codes=codes,
        code_counts=code_counts,
        before_W=np.bincount(counted[0], minlength=vocab_size),
        followers_W=np.bincount(codes // vocab_size, minlength=vocab_size),
        smoothing=SMOOTHINGS[0],
        discount=DISCOUNTS[0],
    )
    smoothed = [replace(model, smoothing=k) for k in SMOOTHINGS]
    best = min(smoothed, key=lambda model: _nats(model.unigram(fitted)))
    discounted = [replace(best, discount=t) for t in DISCOUNTS]
    return min(discounted, key=lambda model: _nats(model.bigram(fitted)))


def predicted_pairs(batch: Batch) -> Pairs:
    """Return every token of a batch that is predicted, with its predecessor."""
    ids_BT, documents_BT = batch.ids_BT.numpy(), batch.documents_BT.numpy()
    follows = (documents_BT[:, 1:] == documents_BT[:, :-1]) & (documents_BT[:, 1:] >= 0)
    return np.stack([ids_BT[:, :-1][follows], ids_BT[:, 1:][follows]])


def _training_pairs(loader: MixLoader) -> tuple[Pairs, Pairs]:
    """Take rows of the first epoch: most to count, the last of them to fit the constants on."""
    counted, fitted = [], []
    for name, share in loader.data.shares.items():
        rows = loader.epoch_rows[name]
        border = min(int(rows * (1.0 - FITTED_SHARE)), rows - 1)
        most = -(-int(share * COUNTED_TOKENS) // loader.seq_len)
        counted.append(predicted_pairs(loader.domain_rows(name, range(min(border, most)))))
        fitted.append(predicted_pairs(loader.domain_rows(name, range(border, rows)[:most])))
    return np.concatenate(counted, axis=1), np.concatenate(fitted, axis=1)


def _baseline(model: PairModel, pairs: Pairs, bytes_count: int) -> Baseline:
    return Baseline(
        uniform=math.log(len(model.counts_W)),
        unigram=_nats(model.unigram(pairs)),
        bigram=_nats(model.bigram(pairs)),
        tokens=pairs.shape[1],
        bytes=bytes_count,
    )


def _nats(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean())


def _path(loader: MixLoader, validation: ValidationSet) -> Path:
    depends = [loader.data.fingerprint, loader.seed, loader.seq_len, COUNTED_TOKENS]
    name = hashlib.sha256(json.dumps([*depends, validation.rows]).encode()).hexdigest()[:20]
    return cache_folder() / "tokens" / f"baselines-{name}.json"
