"""Sampled completions as what the trainer reads: rows in which a group's prompt stands once.

The last token of a completion is only ever predicted, so it is not fed; what was sampled through
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
"""By expert layer: chosen experts [T, K] of prompt and completion without its last token."""


@dataclass(frozen=True)
class ScoredCompletion:
    """One completion to learn from, with its advantage."""

    token_ids: Sequence[int]
    rollout_logprobs: Sequence[float]
    """When it was sampled."""
    advantage: float
    routes: Routes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Group:
    """The completions of one prompt; without any, nothing is learned from it."""

    prompt_ids: Sequence[int]
    completions: Sequence[ScoredCompletion]


@dataclass(frozen=True, kw_only=True)
class GrpoBatch(Batch):
    """One row of groups; see `models/segments.py` for its branches."""

    branches_BT: Tensor
    """int64: 0 for prompts, and from 1 the number of the completion in its group."""
    routes: dict[int, Tensor]
    """By expert layer: int64 [1, M, K]; empty where nothing is replayed."""
    sources_X: Tensor
    """Place in the row of the token that predicts each sampled token."""
    targets_X: Tensor
    """The sampled tokens."""
    rollout_logprobs_X: Tensor
    """Their log-probabilities when they were sampled; with num_iterations > 1 the old ones."""
    advantages_X: Tensor
    ref_logprobs_X: Tensor | None = None
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
        ref_logprobs_X = None if self.ref_logprobs_X is None else send(self.ref_logprobs_X, device)
        return replace(
            moved,
            branches_BT=send(self.branches_BT, device),
            routes={layer: send(experts, device) for layer, experts in self.routes.items()},
            sources_X=send(self.sources_X, device),
            targets_X=send(self.targets_X, device),
            rollout_logprobs_X=send(self.rollout_logprobs_X, device),
            advantages_X=send(self.advantages_X, device),
            ref_logprobs_X=ref_logprobs_X,
        )


def build_batch(groups: Sequence[Group]) -> GrpoBatch:
    """Put groups into one row, their completions behind the prompt that they share."""
    ids: list[int] = []
    documents: list[int] = []
    branches: list[int] = []
    sources: list[int] = []
    for number, group in enumerate(groups):
        ids += group.prompt_ids
        documents += [number] * len(group.prompt_ids)
        branches += [0] * len(group.prompt_ids)
        last = len(ids) - 1
        for branch, completion in enumerate(group.completions, 1):
            fed = len(completion.token_ids) - 1
            sources += [last, *range(len(ids), len(ids) + fed)]
            ids += completion.token_ids[:-1]
            documents += [number] * fed
            branches += [branch] * fed
    completions = [completion for group in groups for completion in group.completions]
    return GrpoBatch(
        ids_BT=torch.tensor([ids]),
        documents_BT=torch.tensor([documents]),
        branches_BT=torch.tensor([branches]),
        routes=_row_of_routes(groups),
        sources_X=torch.tensor(sources, dtype=torch.int64),
        targets_X=torch.tensor(_flat(a.token_ids for a in completions), dtype=torch.int64),
        rollout_logprobs_X=torch.tensor(
            _flat(a.rollout_logprobs for a in completions), dtype=torch.float32
        ),
        advantages_X=torch.tensor(
            _flat([a.advantage] * len(a.token_ids) for a in completions), dtype=torch.float32
        ),
    )


def _row_of_routes(groups: Sequence[Group]) -> dict[int, Tensor]:
    """Lay out the routes as the tokens are; a prompt went the same way in all its completions."""
    parts: dict[int, list[Tensor]] = {}
    for group in groups:
        prompt = len(group.prompt_ids)
        for branch, completion in enumerate(group.completions):
            for layer, experts_TK in (completion.routes or {}).items():
                own_TK = experts_TK if branch == 0 else experts_TK[prompt:]
                parts.setdefault(layer, []).append(own_TK)
    return {layer: torch.cat(found).long().unsqueeze(0) for layer, found in parts.items()}


def _flat(lists: Iterable[Sequence[float]]) -> list[float]:
    return [value for values in lists for value in values]
