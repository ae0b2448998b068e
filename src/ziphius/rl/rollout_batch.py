"""The rollout batch, what is sampled at once for GRPO: rewards, the groups that teach something,
the figures.

Shapes: G groups, A completions of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.dist.world import World
from ziphius.rl.batch import Group, ScoredCompletion
from ziphius.rl.objective import group_advantages
from ziphius.rl.problems import ProblemStream
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, sample_groups
from ziphius.tasks import Problem

Groups = Sequence[Sequence[Rollout]]
"""Completions by prompt."""
REFILL_FIRST_ID = 2**40
"""Sequences of the first refill begin here, of the second at twice this, and so on."""
SAMPLED, COMPLETIONS, STEPS = "sampled tokens", "completions", "steps"
ASKED, GROUPS = "completions of the first prompts", "first prompts"
"""What the figures of a rollout batch are divided by."""
FIGURES = {
    "reward": ASKED,
    "correct": ASKED,
    "frac_reward_zero_std": GROUPS,
    "completions/clipped_ratio": COMPLETIONS,
    "completions/mean_length": COMPLETIONS,
    "entropy": SAMPLED,
    "sampled_completions": STEPS,
    "refilled_groups": STEPS,
}
"""Means that are reported of every step, by what they are divided by.

Rewards, and the share of groups in which they are all equal, are of the prompts that the step asked
first: what replaces others is no fair sample. `completions/mean_length` is of all completions, and
with `sampled_completions` counts all tokens. `refilled_groups` are prompts that were replaced by
one that teaches. `entropy` is the mean of -log p of the sampled tokens, which is an unbiased
estimate."""
FORMAT = "reward/format"
"""What the bonus for the format adds to `reward`; reported where there is one."""


@dataclass
class RolloutBatch:
    """What sampling once left for the trainer."""

    number: int
    """Which of the run."""
    groups: list[Group]
    """Those that teach something."""
    spare: Group
    """A prompt to feed where nothing is to be learned."""
    figures: dict[str, float]
    counts: dict[str, float]


def sample_rollout_batch(
    engine: RolloutEngine,
    problems: ProblemStream,
    config: GrpoConfig,
    *,
    number: int,
    seed: int,
    world: World,
) -> RolloutBatch:
    """Answer this rank's share of a step's problems, and others in place of those that are equal.

    What is drawn hangs on the seed, the round, the refill and the place of a problem in the step;
    no rank waits for another.

    Args:
        engine: of the model, in the numbers that answers are to be sampled in.
        problems: what to ask.
        config: of the run.
        number: of the round.
        seed: of the run.
        world: the ranks that share the problems.
    """
    everything = problems(number)
    first_id = number * len(everything) * config.rollout.num_generations
    assert first_id < REFILL_FIRST_ID // 2, "rounds would draw what refills draw"
    asked = _share(everything, world)

    def completions(refill: int) -> Groups:
        return sample_groups(
            engine,
            list(asked.values()),
            config.rollout,
            seed=seed,
            first_sequence_id=first_id + refill * REFILL_FIRST_ID,
            numbers=list(asked),
        )

    sampled = [completions(0)]
    for refill in range(1, config.refill_rounds + 1):
        places = list(asked)
        equal = [places[each] for each in equal_groups(sampled[-1], config)]
        if not equal:
            break
        others = _share(problems(number, refill), world)
        asked = {place: others[place] for place in equal}
        sampled.append(completions(refill))
    return digest(number, sampled[0], config, sampled[1:])


def _share(problems: Sequence[Problem], world: World) -> dict[int, Problem]:
    """Return the problems of a rank, by their place in the step."""
    share, left = divmod(len(problems), world.size)
    if left:
        raise ConfigError(
            f"{len(problems)} problems a step cannot be shared by {world.size} processes."
        )
    first = world.rank * share
    return {place: problems[place] for place in range(first, first + share)}


def reward(rollout: Rollout, format_bonus: float) -> float:
    """Return 1 for a correct answer, with a bonus if it also follows the format; 0 for others.

    Looks alone pay nothing: a bonus for the format of wrong answers is what models learn first.
    """
    return float(rollout.is_correct) + format_part(rollout, format_bonus)


def format_part(rollout: Rollout, format_bonus: float) -> float:
    """Return what an answer gets for its format."""
    return format_bonus * (rollout.is_correct and rollout.follows_format)


def equal_groups(groups: Groups, config: GrpoConfig) -> list[int]:
    """Return the places of groups whose answers all got the same reward: they teach nothing."""
    _, differs_G = group_advantages(_rewards(groups, config), config.advantage)
    return [place for place, differs in enumerate(differs_G.tolist()) if not differs]


def digest(
    number: int, groups: Groups, config: GrpoConfig, refills: Sequence[Groups] = ()
) -> RolloutBatch:
    """Reward a round, keep the groups that teach something, and sum up what was sampled.

    Args:
        number: of the round.
        groups: answers to the prompts that the step asked first.
        config: of the run.
        refills: further rounds of sampling, each in place of the equal groups of the one before.
    """
    kept = [_teaching(each, config) for each in (groups, *refills)]
    asked = [rollout for group in groups for rollout in group]
    completions = asked + [rollout for each in refills for group in each for rollout in group]
    tokens = sum(len(rollout.token_ids) for rollout in completions)
    figures = {
        "reward": float(_rewards(groups, config).sum()),
        "correct": float(sum(rollout.is_correct for rollout in asked)),
        "frac_reward_zero_std": float(len(groups) - len(kept[0])),
        "completions/clipped_ratio": float(
            sum(rollout.finish_reason == "length" for rollout in completions)
        ),
        "completions/mean_length": float(tokens),
        "entropy": -sum(sum(rollout.logprobs) for rollout in completions),
        "sampled_completions": float(len(completions)),
        "refilled_groups": float(sum(map(len, kept[1:]))),
        FORMAT: sum(format_part(rollout, config.format_bonus) for rollout in asked),
    }
    counts = {
        SAMPLED: float(tokens),
        COMPLETIONS: float(len(completions)),
        ASKED: float(len(asked)),
        GROUPS: float(len(groups)),
    }
    spare = Group(groups[0][0].prompt_ids, ())
    return RolloutBatch(number, [group for each in kept for group in each], spare, figures, counts)


def _teaching(groups: Groups, config: GrpoConfig) -> list[Group]:
    """Keep the groups whose rewards differ, with the advantages of their completions."""
    advantages_GA, differs_G = group_advantages(_rewards(groups, config), config.advantage)
    return [
        Group(
            group[0].prompt_ids,
            [
                ScoredCompletion(rollout.token_ids, rollout.logprobs, advantage, rollout.routes)
                for rollout, advantage in zip(group, advantages, strict=True)
            ],
        )
        for group, advantages, differs in zip(
            groups, advantages_GA.tolist(), differs_G.tolist(), strict=True
        )
        if differs
    ]


def _rewards(groups: Groups, config: GrpoConfig) -> Tensor:
    """Return the rewards [G, A] of groups of equal size."""
    return torch.tensor(
        [[reward(rollout, config.format_bonus) for rollout in group] for group in groups]
    )


def to_json(found: RolloutBatch) -> dict[str, Any]:
    """Write a rollout batch as JSON values; floats keep every bit."""
    return {
        "number": found.number,
        "groups": [_group_to_json(group) for group in found.groups],
        "spare": list(found.spare.prompt_ids),
        "figures": found.figures,
        "counts": found.counts,
    }


def from_json(data: Mapping[str, Any]) -> RolloutBatch:
    """Read what `to_json` wrote."""
    groups = [_group_from_json(group) for group in data["groups"]]
    spare = Group(data["spare"], ())
    return RolloutBatch(data["number"], groups, spare, dict(data["figures"]), dict(data["counts"]))


def _group_to_json(group: Group) -> dict[str, Any]:
    completions = [
        {
            "token_ids": list(completion.token_ids),
            "rollout_logprobs": list(completion.rollout_logprobs),
            "advantage": completion.advantage,
            "routes": {str(layer): e.tolist() for layer, e in (completion.routes or {}).items()},
        }
        for completion in group.completions
    ]
    return {"prompt_ids": list(group.prompt_ids), "completions": completions}


def _group_from_json(data: Mapping[str, Any]) -> Group:
    completions = [
        ScoredCompletion(
            completion["token_ids"],
            completion["rollout_logprobs"],
            completion["advantage"],
            {int(layer): torch.tensor(experts) for layer, experts in completion["routes"].items()},
        )
        for completion in data["completions"]
    ]
    return Group(data["prompt_ids"], completions)
