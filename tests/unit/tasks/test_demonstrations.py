from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from ziphius.data.messages import read_conversations
from ziphius.evals.corrections import self_corrections
from ziphius.tasks import TASKS, Problem, get_task
from ziphius.tasks.demonstrations import (
    KINDS,
    DemonstrationConfig,
    demonstrate,
    demonstrations,
    kind_of,
    noisy_answer,
    write_demonstrations,
)
from ziphius.tasks.errors import TaskError
from ziphius.text.chat import get_chat_format

MIXED = DemonstrationConfig(cot=0.5, noise=0.4, corrected=0.3)
LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_kinds_are_what_they_are_called(name: str, level: int) -> None:
    task = get_task(name)
    for problem in task.problems("train", level, 40):
        for kind in sorted(set(KINDS) - {"corrected"}):
            question, answer = demonstrate(problem, kind, seed=1)
            assert (question.role, question.content) == ("user", problem.question)
            assert answer.role == "assistant"
            assert task.verify(problem, answer.content) == (kind != "noisy")
            assert answer.reasoning_content == (task.solve(problem) if kind == "cot" else None)


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_a_slip_is_noticed_and_mended_at_once(name: str, level: int) -> None:
    for problem in get_task(name).problems("train", level, 40):
        if kind_of(problem, DemonstrationConfig(corrected=1.0), 1) == "cot":
            with pytest.raises(TaskError, match="ends in a number"):
                demonstrate(problem, "corrected", 1)
            continue
        _, answer = demonstrate(problem, "corrected", 1)
        assert answer.content == problem.answer
        assert self_corrections(answer.reasoning_content) == 1
        lines = (answer.reasoning_content or "").splitlines()
        place = next(i for i, line in enumerate(lines) if line.startswith("no, "))
        wrong, right = lines[place - 1], lines[place].removeprefix("no, ")
        assert wrong.rpartition("=")[0] == right.rpartition("=")[0]
        assert float(wrong.rpartition("=")[2]) != float(right.rpartition("=")[2])
        lines[place - 1 : place + 1] = [right]
        assert "\n".join(lines) == get_task(name).solve(problem)


def test_slips_are_planted_where_steps_end_in_numbers() -> None:
    config = DemonstrationConfig(corrected=1.0)
    kinds = {
        name: {kind_of(problem, config, 1) for problem in get_task(name).problems("train", 2, 20)}
        for name in ("ab", "chain_sum", "letter_counting", "products", "spell_backward")
    }
    assert kinds == {
        "ab": {"cot"},
        "chain_sum": {"corrected"},
        "letter_counting": {"corrected"},
        "products": {"corrected"},
        "spell_backward": {"cot"},
    }
    problem = TASKS["products"].problems("train", 3, 1)[0]
    assert (
        len({demonstrate(problem, "corrected", seed)[1].reasoning_content for seed in range(30)})
        > 9
    )


@pytest.mark.parametrize(
    ("answer", "misses"),
    [
        ("0", {"1", "2"}),
        ("-1", {"-2", "-3", "1"}),
        ("-4", {"-2", "-3", "-5", "-6", "4"}),
        ("1/3", {"2/3", "3/3", "1/1", "1/2", "1/4", "1/5"}),
        ("12", {"2", "10", "11", "13", "14", "22"}),
    ],
)
def test_wrong_answers_are_near(answer: str, misses: set[str]) -> None:
    name = "fraction_simplification" if "/" in answer else "chain_sum"
    numerator, _, denominator = answer.partition("/")
    facts = {
        "answer": answer,
        "numerator": 0,
        "denominator": 0,
        "simplified_numerator": int(numerator),
        "simplified_denominator": int(denominator or "1"),
    }
    problem = Problem(task=name, level=1, question="", answer=answer, content="", facts=facts)
    assert {noisy_answer(problem, seed) for seed in range(200)} == misses


def test_a_wrong_answer_in_letters() -> None:
    problem = Problem(
        task="spell_backward",
        level=1,
        question="",
        answer="nus",
        content="",
        facts={"answer": "nus"},
    )
    found = {noisy_answer(problem, seed) for seed in range(300)}
    assert found == {"uns", "nsu", "us", "ns", "nu", "nnus", "nuus", "nuss"}


def test_by_default_all_show_right_steps() -> None:
    problems = TASKS["chain_sum"].problems("train", 2, 100)
    assert {kind_of(problem, DemonstrationConfig(), 7) for problem in problems} == {"cot"}


def test_shares_are_those_of_the_config() -> None:
    problems = TASKS["chain_sum"].problems("train", 2, 3_000)
    kinds = Counter(kind_of(problem, MIXED, 7) for problem in problems)
    shares = {kind: count / 3_000 for kind, count in kinds.items()}
    expected = {"cot": 0.35, "corrected": 0.15, "direct": 0.3, "noisy": 0.2}
    assert shares == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cot": 1.1}, "less than or equal to 1"),
        ({"noise": 0.1}, "noise: no demonstration answers at once. Lower cot too."),
        ({"cot": 0.0, "corrected": 0.1}, "corrected: no demonstration shows its steps."),
    ],
)
def test_settings_without_effect_are_errors(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DemonstrationConfig(**settings)


def test_a_demonstration_hangs_on_seed_and_problem_alone() -> None:
    problems = TASKS["gcd"].problems("train", 1, 200)
    whole = list(demonstrations(problems, MIXED, seed=3))
    assert list(demonstrations(problems[50:60], MIXED, seed=3)) == whole[50:60]
    assert list(demonstrations(problems, MIXED, seed=4)) != whole


def test_the_file_is_what_training_reads(tmp_path: Path) -> None:
    problems = TASKS["letter_counting"].problems("train", 1, 60)
    write_demonstrations(tmp_path / "a.jsonl", problems, MIXED, seed=3)
    read = [conversation.messages for conversation in read_conversations(tmp_path / "a.jsonl")]
    assert read == list(demonstrations(problems, MIXED, seed=3))
    write_demonstrations(tmp_path / "b.jsonl", problems, MIXED, seed=3)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_chat_format_puts_the_steps_into_a_think_block() -> None:
    problem = TASKS["gcd"].problems("train", 1, 1)[0]
    text = get_chat_format("deepseek-r1").render(demonstrate(problem, "cot", 0))
    steps = TASKS["gcd"].solve(problem)
    assert f"<think>\n{steps}\n</think>\n\n{problem.answer}" in text
    assert "<think>" not in get_chat_format("deepseek-r1").render(demonstrate(problem, "noisy", 0))
