"""What is sampled for one round of GRPO: rewards, the groups that teach something, the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ziphius.rl.batch import Answer, Group
from ziphius.rl.objective import group_advantages
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout.sample import Rollout

SAMPLED, ANSWERS, GROUPS = "sampled tokens", "answers", "groups"
"""What the figures of a round are divided by."""
FIGURES = {
    "reward": ANSWERS,
    "correct": ANSWERS,
    "cut_off": ANSWERS,
    "completion_tokens": ANSWERS,
    "entropy": SAMPLED,
    "dead_groups": GROUPS,
}
"""Means that are reported of every step, by what they are divided by. `entropy` is the mean of
-log p of the sampled tokens, which is an unbiased estimate."""


@dataclass
class Round:
    """What sampling once left for the trainer."""

    number: int
    """Which of the run."""
    groups: list[Group]
    """Those that teach something."""
    spare: Group
    """A prompt to feed where nothing is to be learned."""
    figures: dict[str, float]
    counts: dict[str, float]


def reward(rollout: Rollout, format_bonus: float) -> float:
    """Return 1 for a correct answer, with a bonus if it also follows the format; 0 for others.

    Looks alone pay nothing: a bonus for the format of wrong answers is what models learn first.
    """
    if not rollout.is_correct:
        return 0.0
    return 1.0 + format_bonus * rollout.follows_format


def digest(number: int, groups: Sequence[Sequence[Rollout]], config: GrpoConfig) -> Round:
    """Reward a round, keep the groups that teach something, and sum up what was sampled."""
    rewards_GA = torch.tensor(
        [[reward(rollout, config.format_bonus) for rollout in group] for group in groups]
    )
    advantages_GA, differs_G = group_advantages(rewards_GA, config.advantage)
    kept = [
        Group(
            group[0].prompt_ids,
            [
                Answer(rollout.token_ids, rollout.logprobs, advantage, rollout.routes)
                for rollout, advantage in zip(group, advantages, strict=True)
            ],
        )
        for group, advantages, differs in zip(
            groups, advantages_GA.tolist(), differs_G.tolist(), strict=True
        )
        if differs
    ]
    answers = [rollout for group in groups for rollout in group]
    tokens = sum(len(rollout.token_ids) for rollout in answers)
    figures = {
        "reward": float(rewards_GA.sum()),
        "correct": float(sum(rollout.is_correct for rollout in answers)),
        "cut_off": float(sum(rollout.finish_reason == "length" for rollout in answers)),
        "completion_tokens": float(tokens),
        "entropy": -sum(sum(rollout.logprobs) for rollout in answers),
        "dead_groups": float(len(groups) - len(kept)),
    }
    counts = {SAMPLED: float(tokens), ANSWERS: float(len(answers)), GROUPS: float(len(groups))}
    spare = Group(groups[0][0].prompt_ids, ())
    return Round(number, kept, spare, figures, counts)


def to_json(found: Round) -> dict[str, Any]:
    """Write a round as JSON values; floats keep every bit."""
    return {
        "number": found.number,
        "groups": [_group_to_json(group) for group in found.groups],
        "spare": list(found.spare.prompt_ids),
        "figures": found.figures,
        "counts": found.counts,
    }


def from_json(data: Mapping[str, Any]) -> Round:
    """Read what `to_json` wrote."""
    groups = [_group_from_json(group) for group in data["groups"]]
    spare = Group(data["spare"], ())
    return Round(data["number"], groups, spare, dict(data["figures"]), dict(data["counts"]))


def _group_to_json(group: Group) -> dict[str, Any]:
    answers = [
        {
            "token_ids": list(answer.token_ids),
            "logprobs": list(answer.logprobs),
            "advantage": answer.advantage,
            "routes": {str(layer): e.tolist() for layer, e in (answer.routes or {}).items()},
        }
        for answer in group.answers
    ]
    return {"prompt_ids": list(group.prompt_ids), "answers": answers}


def _group_from_json(data: Mapping[str, Any]) -> Group:
    answers = [
        Answer(
            answer["token_ids"],
            answer["logprobs"],
            answer["advantage"],
            {int(layer): torch.tensor(experts) for layer, experts in answer["routes"].items()},
        )
        for answer in data["answers"]
    ]
    return Group(data["prompt_ids"], answers)
