"""A measurement holds what a model answered, and is honest about what it was not asked."""

import dataclasses
from collections.abc import Sequence

import pytest

from tests.unit.evals.measurements import answers, measurement
from ziphius.evals.errors import EvalError
from ziphius.evals.measure import Measurement, measure, measure_by
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import Rollout, RolloutConfig, sample_groups
from ziphius.tasks import Problem, get_task
from ziphius.text.vocabulary import deepseek_tokenizer


def problem(question: str) -> Problem:
    return Problem(
        task="chain_sum", level=1, question=question, answer="3", content=question, facts={}
    )


def rollout(asked: Problem, *, is_correct: bool, tokens: int, is_cut: bool = False) -> Rollout:
    reasoning = None if is_cut else "wait, no, 1+2=3"
    reason = "length" if is_cut else "stop"
    ids = tuple(range(tokens))
    answer = None if is_cut else "3"
    return Rollout(asked, (1, 2), ids, (0.0,) * tokens, reason, reasoning, answer, is_correct)


def test_every_answer_is_kept_under_its_slice() -> None:
    asked: list[Problem] = []

    def sample(problems: Sequence[Problem]) -> list[list[Rollout]]:
        asked.extend(problems)
        return [
            [
                rollout(one, is_correct=True, tokens=5),
                rollout(one, is_correct=False, tokens=9, is_cut=True),
            ]
            for one in problems
        ]

    times = iter([10.0, 12.0])
    slices = {"easy": [problem("1+2"), problem("2+1")], "hard": [problem("0+3")]}
    found = measure_by(sample, slices, arm="SFT", mode="sampled", clock=lambda: next(times))

    assert [one.question for one in asked] == ["1+2", "2+1", "0+3"]
    assert (found.arm, found.mode) == ("SFT", "sampled")
    assert found.slices == ("easy", "hard")
    assert found.seconds == 2.0
    assert found.tokens_per_s == 3 * 14 / 2.0
    last = found.problems[2]
    assert (last.slice, last.task, last.level) == ("hard", "chain_sum", 1)
    assert last.key == problem("0+3").key
    assert last.answers == ("3", None)
    assert last.correct == (True, False)
    assert last.tokens == (5, 9)
    assert last.corrections == (2, 0)
    assert last.truncated == (False, True)


def test_a_model_is_sampled_as_for_training() -> None:
    """With the seed alone the same answers come, whose figures are those of the rollouts."""
    model, tokenizer = Model(get_preset("r1-distill-llama-tiny")), deepseek_tokenizer(512)
    model.initialize(seed=0)
    config = RolloutConfig(num_generations=2, max_new_tokens=5)
    asked = get_task("chain_sum").problems("test", level=1, count=3)
    slices = {"easy": asked[:1], "hard": asked[1:]}
    engine = RolloutEngine(model, tokenizer)
    found = measure(engine, slices, config, seed=7, arm="SFT", mode="sampled")
    groups = sample_groups(engine, asked, config, seed=7)
    assert found.slices == ("easy", "hard")
    assert found.seconds > 0.0
    assert (found.arm, found.mode) == ("SFT", "sampled")
    assert [one.key for one in found.problems] == [one.key for one in asked]
    assert [one.answers for one in found.problems] == [
        tuple(rollout.answer for rollout in group) for group in groups
    ]
    assert [one.tokens for one in found.problems] == [
        tuple(len(rollout.token_ids) for rollout in group) for group in groups
    ]
    assert [one.truncated for one in found.problems] == [
        tuple(rollout.finish_reason == "length" for rollout in group) for group in groups
    ]


def test_slices_are_chosen_by_name() -> None:
    found = measurement({"easy": [1, 0], "hard": [2]}, samples=2)
    assert len(found.only(["easy"])) == 2
    assert len(found.only(["easy", "hard"])) == 3
    with pytest.raises(EvalError, match=r"No slice 'odd' was measured; there are: easy, hard\."):
        found.only(["easy", "odd"])


def test_a_problem_counts_once() -> None:
    one = answers("easy", "a", 1, 2)
    with pytest.raises(EvalError, match="twice"):
        Measurement((one, one), 1.0, "SFT", "sampled")


def test_a_problem_without_samples_is_refused() -> None:
    with pytest.raises(EvalError, match="no samples"):
        answers("easy", "a", 0, 0)


def test_every_sample_has_its_answer() -> None:
    with pytest.raises(EvalError, match="not one entry for each"):
        dataclasses.replace(answers("easy", "a", 1, 2), answers=("7",))


def test_no_time_is_no_speed() -> None:
    assert Measurement((), 0.0, "SFT", "sampled").tokens_per_s == 0.0
