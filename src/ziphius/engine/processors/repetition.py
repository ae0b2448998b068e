"""The end of answers that go round in circles."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ziphius.engine.sampling_params import RepetitionDetection

REASON = "repetition"
_KEPT = 256
"""Tokens that can be taken back: more than anybody drafts."""


class RepetitionGuard:
    """End a sequence once it ends with one pattern of tokens, several times in a row.

    The same test as vLLM's `repetition_detection`: some pattern of `min_pattern_size` to
    `max_pattern_size` tokens stands `min_count` times at the end. It masks nothing.
    """

    def __init__(self, detection: RepetitionDetection) -> None:
        sizes = np.arange(detection.min_pattern_size, detection.max_pattern_size + 1)
        self._sizes = sizes
        self._needed = sizes * (detection.min_count - 1)
        self._history: list[int] = []
        # How many tokens up to the last equal, one after the other, those one pattern before them.
        self._runs = [np.zeros(len(sizes), dtype=np.int64)]

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Change nothing."""

    def accept(self, token_id: int) -> str | None:
        """Look for a pattern that is complete with this token."""
        self._history.append(token_id)
        longest = int(self._sizes[-1])
        # -1, which no token is, before the first one.
        recent = self._history[-1 - longest : -1]
        before = np.array([*[-1] * (longest - len(recent)), *recent])
        equal = before[longest - self._sizes] == token_id
        runs = np.where(equal, self._runs[-1] + 1, 0)
        self._runs.append(runs)
        del self._runs[: -1 - _KEPT]
        return REASON if bool((runs >= self._needed).any()) else None

    def rollback(self, count: int) -> None:
        """Go back."""
        assert count < len(self._runs)
        if count:
            del self._history[-count:], self._runs[-count:]
