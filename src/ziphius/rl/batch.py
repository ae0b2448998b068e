"""Sampled answers as what the trainer reads: rows in which a group's prompt stands once.

The last token of an answer is only ever predicted, so it is not fed; what was sampled through
experts of its own choice is fed through the same ones.

Shapes: M tokens of the row, K experts per token, X sampled tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ziphius.core.device import send
from ziphius.data.batch import Batch

Routes = Mapping[int, Tensor]
"""By expert layer: chosen experts [T, K] of prompt and answer without its last token."""


@dataclass(frozen=True)
class Answer:
    """One answer to learn from."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """When it was sampled."""
    advantage: float
    routes: Routes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt; without any, nothing is learned from it."""

    prompt_ids: Sequence[int]
    answers: Sequence[Answer]


@dataclass(frozen=True, kw_only=True)
class GrpoBatch(Batch):
    """One row of groups; see `models/segments.py` for its branches."""

    branches_BT: Tensor
    """int64: 0 for prompts, and from 1 the number of the answer in its group."""
    routes: dict[int, Tensor]
    """By expert layer: int64 [1, M, K]; empty where nothing is replayed."""
    sources_X: Tensor
    """Place in the row of the token that predicts each sampled token."""
    targets_X: Tensor
    """The sampled tokens."""
    sampled_X: Tensor
    """Their log-probabilities when they were sampled."""
    advantages_X: Tensor
    reference_X: Tensor | None = None
    """Their log-probabilities under the reference, where one is kept."""
    is_fresh: bool = True
    """The weights are still those that sampled."""
    figures: dict[str, float] = field(default_factory=dict)
    """Sums over what was sampled for the step, on its first micro-batch alone."""
    counts: dict[str, float] = field(default_factory=dict)
    """What they are divided by."""

    def to(self, device: torch.device) -> "GrpoBatch":
        """Return the batch with its tensors on a device."""
        moved = super().to(device)
        assert isinstance(moved, GrpoBatch)
        reference_X = None if self.reference_X is None else send(self.reference_X, device)
        return replace(
            moved,
            branches_BT=send(self.branches_BT, device),
            routes={layer: send(experts, device) for layer, experts in self.routes.items()},
            sources_X=send(self.sources_X, device),
            targets_X=send(self.targets_X, device),
            sampled_X=send(self.sampled_X, device),
            advantages_X=send(self.advantages_X, device),
            reference_X=reference_X,
        )


def build_batch(groups: Sequence[Group]) -> GrpoBatch:
    """Put groups into one row, their answers behind the prompt that they share."""
    ids: list[int] = []
    documents: list[int] = []
    branches: list[int] = []
    sources: list[int] = []
    for number, group in enumerate(groups):
        ids += group.prompt_ids
        documents += [number] * len(group.prompt_ids)
        branches += [0] * len(group.prompt_ids)
        last = len(ids) - 1
        for branch, answer in enumerate(group.answers, 1):
            fed = len(answer.token_ids) - 1
            sources += [last, *range(len(ids), len(ids) + fed)]
            ids += answer.token_ids[:-1]
            documents += [number] * fed
            branches += [branch] * fed
    answers = [answer for group in groups for answer in group.answers]
    return GrpoBatch(
        ids_BT=torch.tensor([ids]),
        documents_BT=torch.tensor([documents]),
        branches_BT=torch.tensor([branches]),
        routes=_row_of_routes(groups),
        sources_X=torch.tensor(sources, dtype=torch.int64),
        targets_X=torch.tensor(_flat(a.token_ids for a in answers), dtype=torch.int64),
        sampled_X=torch.tensor(_flat(a.logprobs for a in answers), dtype=torch.float32),
        advantages_X=torch.tensor(
            _flat([a.advantage] * len(a.token_ids) for a in answers), dtype=torch.float32
        ),
    )


def _row_of_routes(groups: Sequence[Group]) -> dict[int, Tensor]:
    """Lay out the routes as the tokens are; a prompt went the same way in all its answers."""
    parts: dict[int, list[Tensor]] = {}
    for group in groups:
        prompt = len(group.prompt_ids)
        for branch, answer in enumerate(group.answers):
            for layer, experts_TK in (answer.routes or {}).items():
                own_TK = experts_TK if branch == 0 else experts_TK[prompt:]
                parts.setdefault(layer, []).append(own_TK)
    return {layer: torch.cat(found).long().unsqueeze(0) for layer, found in parts.items()}


def _flat(lists: Iterable[Sequence[float]]) -> list[float]:
    return [value for values in lists for value in values]
