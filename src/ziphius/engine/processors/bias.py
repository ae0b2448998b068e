"""Tokens that a request favours or forbids: logit bias, bad words, stops that come too early."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ziphius.engine.processors.processor import Stateless
from ziphius.text.tokenizer import Tokenizer


class LogitBias(Stateless):
    """Add numbers to the logits of some tokens, as OpenAI's `logit_bias` does."""

    def __init__(self, biases: Sequence[tuple[int, float]]) -> None:
        self._ids = torch.tensor([token_id for token_id, _ in biases])
        self._biases = torch.tensor([bias for _, bias in biases], dtype=torch.float32)

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Add them."""
        device = logits_W.device
        logits_W.index_add_(0, self._ids.to(device), self._biases.to(device))


class BadWords(Stateless):
    """Mask the token that would complete a forbidden sequence; only the answer's tokens count."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._always = torch.tensor([word[0] for word in words if len(word) == 1], dtype=torch.long)
        self._words = [(tuple(word[:-1]), word[-1]) for word in words if len(word) > 1]

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Mask what may not come now."""
        logits_W.index_fill_(0, self._always.to(logits_W.device), -torch.inf)
        for before, last in self._words:
            if tuple(token_ids[-len(before) :]) == before:
                logits_W[last] = -torch.inf


class MinTokens(Stateless):
    """Mask the tokens that end a sequence while it is shorter than wanted."""

    def __init__(self, min_tokens: int, stop_ids: Sequence[int]) -> None:
        self._min_tokens = min_tokens
        self._stop_ids = torch.tensor(stop_ids, dtype=torch.long)

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Mask them, or nothing any more."""
        if len(token_ids) < self._min_tokens:
            logits_W.index_fill_(0, self._stop_ids.to(logits_W.device), -torch.inf)


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Write words as the token sequences that `SamplingParams.bad_words` takes.

    A word within a text begins with its space, so both spellings of it are forbidden (vLLM does the
    same). Other ways to cut the word into tokens stay possible.
    """
    spelled = (tokenizer.encode(space + word.lstrip()) for word in words for space in ("", " "))
    return tuple(dict.fromkeys(tuple(ids) for ids in spelled if ids))
