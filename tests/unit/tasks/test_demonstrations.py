from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from ziphius.data.messages import read_conversations
from ziphius.tasks import TASKS, Problem, get_task
from ziphius.tasks.demonstrations import (
    KINDS,
    DemonstrationConfig,
    demonstrate,
    demonstrations,
    kind_of,
    slip,
    write_demonstrations,
)
from ziphius.text.chat import get_chat_format

CONFIG = DemonstrationConfig()
LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_kinds_are_what_they_are_called(name: str, level: int) -> None:
    task = get_task(name)
    for problem in task.problems("train", level, 40):
        for kind in KINDS:
            question, answer = demonstrate(problem, kind, seed=1)
            assert (question.role, question.content) == ("user", problem.question)
            assert answer.role == "assistant"
            assert task.verify(problem, answer.content) == (kind != "slip")
            assert answer.reasoning_content == (task.solve(problem) if kind == "worked" else None)


@pytest.mark.parametrize(
    ("answer", "misses"),
    [
        ("0", {"1", "2"}),
        ("-4", {"-2", "-3", "-5", "-6", "4"}),
        ("1/3", {"2/3", "3/3", "1/1", "1/2", "1/4", "1/5"}),
        ("12", {"2", "10", "11", "13", "14", "22"}),
    ],
)
def test_slips_are_near(answer: str, misses: set[str]) -> None:
    name = "fraction_simplification" if "/" in answer else "chain_sum"
    numerator, _, denominator = answer.partition("/")
    facts = {
        "answer": answer,
        "numerator": 0,
        "denominator": 0,
        "simplified_numerator": int(numerator),
        "simplified_denominator": int(denominator or "1"),
    }
    problem = Problem(name, 1, "", answer, facts)
    assert {slip(problem, seed) for seed in range(200)} == misses


def test_a_slip_in_letters() -> None:
    problem = Problem("spell_backward", 1, "", "nus", {"answer": "nus"})
    found = {slip(problem, seed) for seed in range(300)}
    assert found == {"uns", "nsu", "us", "ns", "nu", "nnus", "nuus", "nuss"}


def test_shares_are_those_of_the_config() -> None:
    problems = TASKS["chain_sum"].problems("train", 2, 3_000)
    kinds = Counter(kind_of(problem, CONFIG, 7) for problem in problems)
    shares = {kind: count / 3_000 for kind, count in kinds.items()}
    assert shares == pytest.approx({"worked": 0.3, "direct": 0.455, "slip": 0.245}, abs=0.03)
    only = DemonstrationConfig(worked=1.0, slip=0.0)
    assert {kind_of(problem, only, 7) for problem in problems} == {"worked"}
    with pytest.raises(ValidationError):
        DemonstrationConfig(worked=1.1)


def test_a_demonstration_hangs_on_seed_and_problem_alone() -> None:
    problems = TASKS["gcd"].problems("train", 1, 200)
    whole = list(demonstrations(problems, CONFIG, seed=3))
    assert list(demonstrations(problems[50:60], CONFIG, seed=3)) == whole[50:60]
    assert list(demonstrations(problems, CONFIG, seed=4)) != whole


def test_the_file_is_what_training_reads(tmp_path: Path) -> None:
    problems = TASKS["letter_counting"].problems("train", 1, 60)
    write_demonstrations(tmp_path / "a.jsonl", problems, CONFIG, seed=3)
    read = [conversation.messages for conversation in read_conversations(tmp_path / "a.jsonl")]
    assert read == list(demonstrations(problems, CONFIG, seed=3))
    write_demonstrations(tmp_path / "b.jsonl", problems, CONFIG, seed=3)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_chat_format_puts_the_steps_into_a_think_block() -> None:
    problem = TASKS["gcd"].problems("train", 1, 1)[0]
    text = get_chat_format("deepseek-r1").render(demonstrate(problem, "worked", 0))
    steps = TASKS["gcd"].solve(problem)
    assert f"<think>\n{steps}\n</think>\n\n{problem.answer}" in text
    assert "<think>" not in get_chat_format("deepseek-r1").render(demonstrate(problem, "slip", 0))
