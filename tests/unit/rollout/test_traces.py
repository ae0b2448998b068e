"""`rollout/traces.py`: which answers of a teacher are kept, and what is written of them."""

import json
from pathlib import Path

import pytest

from ziphius.core.errors import ConfigError
from ziphius.data.messages import read_conversations
from ziphius.rollout.sample import Rollout
from ziphius.rollout.traces import TraceConfig, select_traces, write_traces
from ziphius.tasks import Problem
from ziphius.text.chat import Message


def problem(question: str) -> Problem:
    return Problem(task="sums", level=1, question=question, answer="7", content=question, facts={})


def rollout(
    question: str, reasoning: str | None = "3 + 4", *, tokens: int = 5, answer: str | None = "7"
) -> Rollout:
    return Rollout(
        problem(question),
        (1, 2),
        tuple(range(tokens)),
        (-0.5,) * tokens,
        "stop",
        reasoning,
        answer,
        answer == "7",
    )


def test_wrong_repeated_and_held_out_answers_are_left_out_and_counted() -> None:
    groups = [
        [rollout("a", "x"), rollout("a", "x"), rollout("a", "x", answer="8")],
        [rollout("b", answer="8"), rollout("b", answer=None)],
        [rollout("c"), rollout("c", answer="8")],
        [rollout("a", "y")],
        [rollout("d", "x")],
    ]
    held_out = {problem("c").key}
    traces = select_traces(groups, TraceConfig(), seed=0, held_out=held_out)
    kept = [(trace.problem.question, trace.reasoning) for trace in traces.kept]
    assert kept == [("a", "x"), ("a", "y"), ("d", "x")]
    assert traces.dropped == {"wrong": 3, "said before": 1, "problem of an evaluation": 2}
    assert (traces.problems, traces.solved) == (4, 2)
    assert len(traces.kept) + sum(traces.dropped.values()) == sum(map(len, groups))


def test_the_shortest_answers_of_a_problem_are_kept_in_their_order() -> None:
    lengths = [9, 5, 7, 3, 3]
    group = [rollout("a", f"way {place}", tokens=n) for place, n in enumerate(lengths)]
    traces = select_traces([group], TraceConfig(per_problem=3), seed=0)
    assert [trace.reasoning for trace in traces.kept] == ["way 1", "way 3", "way 4"]
    assert traces.dropped == {"beyond the limit of its problem": 2}
    assert traces.summary()["mean_tokens"] == pytest.approx(11 / 3)


def test_a_random_choice_hangs_on_the_seed_and_the_problem_alone() -> None:
    config = TraceConfig(per_problem=2, choice="random")
    many = [rollout("a", f"way {n}", tokens=n) for n in range(20)]
    first = select_traces([many], config, seed=0).kept
    assert first == select_traces([[rollout("b")], many], config, seed=0).kept[1:]
    chosen = {select_traces([many], config, seed=seed).kept for seed in range(20)}
    assert len(chosen) > 10
    shortest = select_traces([many], TraceConfig(per_problem=2), seed=0).kept
    assert any(kept != shortest for kept in chosen)


def test_answers_without_reasoning_stay_unless_it_is_asked_for() -> None:
    group = [rollout("a", None), rollout("a", "x")]
    assert len(select_traces([group], TraceConfig(), seed=0).kept) == 2
    traces = select_traces([group], TraceConfig(needs_reasoning=True), seed=0)
    assert [trace.reasoning for trace in traces.kept] == ["x"]
    assert traces.dropped == {"without reasoning": 1}


def test_the_file_is_one_that_fine_tuning_reads(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    traces = select_traces([[rollout("a", "3 + 4"), rollout("a", None)]], TraceConfig(), seed=0)
    write_traces(path, traces)
    thought, direct = read_conversations(path)
    asked = Message("user", "a")
    assert thought.messages == (asked, Message("assistant", "7", reasoning_content="3 + 4"))
    assert direct.messages == (asked, Message("assistant", "7"))
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["task"], first["level"], first["tokens"]) == ("sums", 1, 5)
    assert first["key"] == problem("a").key


def test_a_teacher_that_solves_nothing_is_an_error_that_says_why(tmp_path: Path) -> None:
    traces = select_traces([[rollout("a", answer="8")]], TraceConfig(), seed=0)
    with pytest.raises(ConfigError, match=r"1 wrong.*Sample more"):
        write_traces(tmp_path / "traces.jsonl", traces)
    assert not list(tmp_path.iterdir())
