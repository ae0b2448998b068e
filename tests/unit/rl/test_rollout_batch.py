"""`rl/rollout_batch.py`: rewards, the groups that are kept, figures, and the way into a
checkpoint."""

import dataclasses
import json

import pytest
import torch

from tests.unit.rl.toys import grpo_config
from tests.unit.rollout.tasks import echo
from ziphius.rl.batch import build_batch
from ziphius.rl.rollout_batch import (
    ASKED,
    COMPLETIONS,
    FORMAT,
    GROUPS,
    SAMPLED,
    digest,
    from_json,
    reward,
    to_json,
)
from ziphius.rollout.sample import Rollout


def rollout(is_correct: bool, *, reasoning: str | None = "r", answer: str | None = "a") -> Rollout:
    finish = "stop" if answer is not None else "length"
    return Rollout(
        echo("a"), (1, 2), (5, 6, 7), (-1.0, -2.0, -0.5), finish, reasoning, answer, is_correct,
        {1: torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]], dtype=torch.int16)},
    )  # fmt: skip


GOOD, BAD = rollout(True), rollout(False)
CUT = rollout(False, answer=None)


def test_the_bonus_is_for_correct_answers_in_the_format_alone() -> None:
    assert reward(GOOD, 0.1) == pytest.approx(1.1)
    assert reward(rollout(True, reasoning=None), 0.1) == 1.0
    assert reward(BAD, 0.1) == 0.0
    assert reward(GOOD, 0.0) == 1.0


def test_groups_without_a_difference_are_dropped() -> None:
    groups = [[GOOD, BAD, BAD, GOOD], [GOOD] * 4, [BAD, CUT, BAD, BAD]]
    found = digest(7, groups, grpo_config())
    assert found.number == 7
    assert [[a.advantage for a in group.completions] for group in found.groups] == [[1, -1, -1, 1]]
    assert found.counts == {SAMPLED: 36, COMPLETIONS: 12, ASKED: 12, GROUPS: 3}
    assert found.figures == {
        "reward": 6,
        "correct": 6,
        "frac_reward_zero_std": 2,
        "completions/clipped_ratio": 1,
        "completions/mean_length": 36,
        "entropy": 42,
        "sampled_completions": 12,
        "refilled_groups": 0,
        FORMAT: 0,
    }


def test_what_replaces_equal_groups_is_learned_and_counted_but_no_measure_of_the_model() -> None:
    groups = [[GOOD, GOOD], [GOOD, BAD], [BAD, CUT]]
    refills = [[[BAD, GOOD], [BAD, BAD]], [[CUT, BAD]]]
    found = digest(0, groups, grpo_config(), refills)
    assert [[a.advantage for a in group.completions] for group in found.groups] == [
        [1, -1],
        [-1, 1],
    ]
    assert found.counts == {SAMPLED: 36, COMPLETIONS: 12, ASKED: 6, GROUPS: 3}
    first = digest(0, groups, grpo_config()).figures
    for name in ("reward", "correct", "frac_reward_zero_std"):
        assert found.figures[name] == first[name] > 0
    assert found.figures["completions/mean_length"] == 36
    assert found.figures["completions/clipped_ratio"] == 2
    assert found.figures["entropy"] == 42
    assert found.figures["sampled_completions"] == 12
    assert found.figures["refilled_groups"] == 1


def test_correctness_alone_is_rewarded_unless_a_bonus_is_asked_for() -> None:
    plain = rollout(True, reasoning=None)
    found = digest(0, [[GOOD, plain]], grpo_config())
    assert found.groups == []
    assert found.figures["reward"] == 2
    paid = digest(0, [[GOOD, plain, BAD]], grpo_config(format_bonus=0.2, advantage="mean"))
    [group] = paid.groups
    mean = 2.2 / 3
    assert [answer.advantage for answer in group.completions] == pytest.approx(
        [1.2 - mean, 1 - mean, -mean]
    )
    assert paid.figures["reward"] == pytest.approx(2.2)
    assert paid.figures["correct"] == 2
    assert paid.figures[FORMAT] == pytest.approx(0.2)


def test_where_all_groups_are_dropped_a_prompt_is_left_to_feed() -> None:
    found = digest(0, [[GOOD, GOOD], [BAD, BAD]], grpo_config())
    assert found.groups == []
    assert found.spare.prompt_ids == (1, 2)


def test_a_round_comes_back_from_json_bit_for_bit() -> None:
    odd = dataclasses.replace(GOOD, logprobs=(float(torch.tensor(-0.1)), -1 / 3, -1e-30))
    found = digest(3, [[odd, BAD, BAD]], grpo_config())
    back = from_json(json.loads(json.dumps(to_json(found))))
    assert to_json(back) == to_json(found)
    batch, again = build_batch(found.groups), build_batch(back.groups)
    for name in ("ids_BT", "rollout_logprobs_X", "advantages_X", "sources_X"):
        assert torch.equal(getattr(batch, name), getattr(again, name))
    assert torch.equal(batch.routes[1], again.routes[1])
