"""The toy that `trl_grpo.py` gives to Ziphius and to TRL alike; torch is all it needs.

A prompt has one right answer: a digit, then the end of the text. So the chance of being right can
be read from two positions of one forward pass instead of being sampled.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "toy.json"


@dataclass(frozen=True)
class Question:
    """What is asked and what is right, as tokens."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Toy:
    """One run: what every round asks, what is only measured, and the settings of both arms."""

    rounds: list[list[Question]]
    unseen: list[Question]
    settings: dict[str, Any]
    vocab_size: int
    seed: int
    """Of the draws."""

    def save(self, folder: Path) -> None:
        """Write the toy for an arm to read."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Toy":
        """Read what `save` wrote."""
        data = json.loads((folder / FILE).read_text())
        data["rounds"] = [[Question(**each) for each in asked] for asked in data["rounds"]]
        data["unseen"] = [Question(**each) for each in data["unseen"]]
        return cls(**data)

    def is_measured(self, update: int) -> bool:
        """Tell whether the model is measured after so many updates."""
        every: int = self.settings["measure_every"]
        return update % every == 0


def reward(ids: Sequence[int], answer: Sequence[int]) -> float:
    """Pay 1 for the digit and the end behind it, 0 for everything else."""
    return float(list(ids) == list(answer))


@torch.no_grad()
def mean_chance(logits: Callable[[Tensor], Tensor], questions: Sequence[Question]) -> float:
    """Return the mean chance of the right answer.

    Args:
        logits: of texts [B, T] of equal length, [B, T, vocabulary].
        questions: whose prompts have one length.
    """
    texts_BT = torch.tensor([each.prompt + each.answer for each in questions])
    right_BA = torch.tensor([each.answer for each in questions])
    first = len(questions[0].prompt) - 1
    scores_BAW = logits(texts_BT)[:, first:-1].log_softmax(-1)
    scores_BA = scores_BAW.gather(2, right_BA[..., None])[..., 0]
    return float(scores_BA.sum(1).exp().mean())
