"""What the loss on conversations has to beat: `data/baselines.py`, for tokens in the loss.

The predecessor of a learned token may be the prompt's last; what the prompt says is not predicted.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ziphius.data.baselines import COUNTED_TOKENS, FITTED_SHARE, Pairs, fit
from ziphius.data.conversation_encode import EncodedConversation
from ziphius.data.conversations import Conversations


def conversation_baselines(
    learned: Conversations, held_out: Conversations, vocab_size: int
) -> dict[str, float]:
    """Measure baselines on held-out conversations, with models of those that are learned.

    Returns:
        Nats per learned token of the uniform, unigram and bigram model; nothing where nothing is
        held out.
    """
    if not held_out.kept or not learned.kept:
        return {}
    some = _first(learned.kept)
    # The last ones fit the constants and are not counted; a single conversation has to do both.
    border = min(int(len(some) * (1.0 - FITTED_SHARE)), len(some) - 1)
    counted, fitted = some[:border], some[border:]
    model = fit(_pairs(counted or fitted), _pairs(fitted), vocab_size)
    pairs = _pairs(held_out.kept)
    return {
        "uniform": math.log(vocab_size),
        "unigram": float(-np.log(model.unigram(pairs)).mean()),
        "bigram": float(-np.log(model.bigram(pairs)).mean()),
    }


def _first(conversations: Sequence[EncodedConversation]) -> Sequence[EncodedConversation]:
    """Return those whose tokens are counted: pairs of all would be another copy of the data."""
    found: list[EncodedConversation] = []
    tokens = 0
    for entry in conversations:
        found.append(entry)
        tokens += int(entry.loss_mask_T.sum())
        if tokens >= COUNTED_TOKENS:
            break
    return found


def _pairs(conversations: Iterable[EncodedConversation]) -> Pairs:
    """Join the learned tokens of conversations, each with its predecessor."""
    parts = [
        np.stack([entry.ids_T[:-1], entry.ids_T[1:]])[:, entry.loss_mask_T[1:]]
        for entry in conversations
    ]
    joined: Pairs = np.concatenate(parts, axis=1, dtype=np.int64)
    return joined
