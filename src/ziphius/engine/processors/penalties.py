"""Penalties on tokens that were there before.

Presence and frequency as OpenAI's API defines them, over the answer; repetition as CTRL does
(arXiv 1909.05858, section 4.1), over prompt and answer. In the order of vLLM: repetition first.

Shapes: U different tokens seen, W vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ziphius.ops.sampling_config import SamplingConfig

_ROOM = 64


class Penalties:
    """Make repetition less likely (or more, with negative penalties).

    Args:
        sampling: the three penalties.
        prompt_ids: what only `repetition_penalty` counts.
    """

    def __init__(self, sampling: SamplingConfig, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._history: list[int] = []
        seen = dict.fromkeys(prompt_ids if sampling.repetition_penalty != 1 else ())
        self._places = {token_id: place for place, token_id in enumerate(seen)}
        self._ids_U = torch.tensor([*seen, *[0] * _ROOM])
        self._counts_U = torch.zeros(len(self._ids_U))
        self._in_prompt_U = torch.arange(len(self._ids_U)) < len(seen)

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Change the logits of tokens that were seen."""
        device, size, sampling = logits_W.device, len(self._places), self._sampling
        ids_U, counts_U = self._ids_U[:size].to(device), self._counts_U[:size].to(device)
        in_answer_U = counts_U > 0
        scores_U = logits_W[ids_U]
        if sampling.repetition_penalty != 1:
            factor = sampling.repetition_penalty
            punished_U = torch.where(scores_U > 0, scores_U / factor, scores_U * factor)
            seen_U = in_answer_U | self._in_prompt_U[:size].to(device)  # not what was taken back
            scores_U = torch.where(seen_U, punished_U, scores_U)
        scores_U -= sampling.frequency_penalty * counts_U
        scores_U -= sampling.presence_penalty * in_answer_U
        logits_W[ids_U] = scores_U

    def accept(self, token_id: int) -> str | None:
        """Count a token."""
        self._history.append(token_id)
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids_U):
            self._ids_U, self._counts_U, self._in_prompt_U = (
                torch.cat((column, torch.zeros_like(column)))
                for column in (self._ids_U, self._counts_U, self._in_prompt_U)
            )
        self._ids_U[place] = token_id
        self._counts_U[place] += 1
        return None

    def rollback(self, count: int) -> None:
        """Take the last tokens out of the counts."""
        for _ in range(count):
            self._counts_U[self._places[self._history.pop()]] -= 1
