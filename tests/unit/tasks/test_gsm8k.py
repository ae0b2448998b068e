import json
from pathlib import Path

import pytest

from ziphius.tasks import Problem, Split, get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.gsm8k import Gsm8k
from ziphius.tasks.numbers import LONGEST_TEXT
from ziphius.tasks.task import split_of


def problem(answer: str) -> Problem:
    return Problem(task="gsm8k", level=1, question="", answer=answer, content="", facts={})


def line(question: str, answer: str) -> str:
    return json.dumps({"question": question, "answer": answer}) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    solution = "He has 2*3 = <<2*3=6>>6 boxes.\nHe pays 6*200 = $<<6*200=1200>>1,200.\n#### 1,200"
    train = [line(f"Tom fills {i} boxes?", solution) for i in range(40)]
    train += [line("TOM  fills 0 boxes? ", solution), line("Is it 5?", "It is.\n#### 5"), "\n"]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(train))
    (tmp_path / "gsm8k_test.jsonl").write_text(line("Is it 5?", "It is.\n#### $5"))
    return tmp_path


def test_every_problem_of_the_train_file_is_in_one_split(folder: Path) -> None:
    task = get_task("gsm8k", folder)
    held_out = [f"Tom fills {i} boxes?" for i in range(40)]
    held_out = [question for question in held_out if split_of(question.lower()) == "validation"]
    assert len(held_out) > 1
    validation = task.problems("validation", 1, len(held_out))
    assert sorted(problem.question for problem in validation) == sorted(held_out)
    train = task.problems("train", 1, 40 - len(held_out))
    assert not {problem.key for problem in train} & {problem.key for problem in validation}
    # The double is dropped, and what is also a test problem.
    with pytest.raises(TaskError, match=f"has {len(train)} problems of level 1"):
        task.problems("train", 1, 41 - len(held_out))
    assert [problem.question for problem in task.problems("test", 1, 1)] == ["Is it 5?"]


def test_order_hangs_on_the_seed(folder: Path) -> None:
    task = get_task("gsm8k", folder)
    assert task.problems("train", 1, 9, seed=1)[:4] == task.problems("train", 1, 4, seed=1)
    assert task.problems("train", 1, 9, seed=1) != task.problems("train", 1, 9, seed=2)


def test_the_published_solution_loses_its_calculator(folder: Path) -> None:
    task = get_task("gsm8k", folder)
    problem = task.problems("train", 1, 1)[0]
    steps = "He has 2*3 = 6 boxes.\nHe pays 6*200 = $1,200.\nanswer=1200"
    assert task.solve(problem) == steps
    assert task.verify(problem, steps)


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("72", True),
        ("72.00", True),
        ("Work.\n\n#### 72", True),
        ("72 or 73", False),
        ("72.5", False),
        ("172", False),
        (None, False),
        ("72" * 5_000_000, False),
        (" " * LONGEST_TEXT + "72", False),
        ("\ud800 72", True),
        ("9e99999999", False),
    ],
)
def test_what_is_correct(answer: str | None, is_correct: bool) -> None:
    assert Gsm8k().verify(problem("72"), answer) is is_correct


@pytest.mark.parametrize(
    ("truth", "answer", "is_correct"),
    [
        ("-5", "#### \u22125", True),
        ("5", "#### \u22125", False),
        ("0.5", "#### .5", True),
        ("5", "#### .5", False),
        ("0.75", "\\boxed{\\frac{3}{4}}", True),
        ("4", "#### 3/4", False),
        ("1000", "#### 1e3", True),
        ("3", "#### 1e3", False),
        ("1000000", "#### 1 million", True),
        ("1", "#### 1 million", False),
        ("12", "#### 12\n\nCheck: 12/3 is 4", True),
        ("4", "#### 12\n\nCheck: 12/3 is 4", False),
        ("72", "73 or 72", False),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("1", "100%", False),
        ("0.5", "0.5%", True),
        ("50", "0.5", False),
    ],
)
def test_what_numbers_say_and_not_their_last_digits(
    truth: str, answer: str, is_correct: bool
) -> None:
    assert Gsm8k().verify(problem(truth), answer) is is_correct


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "train.jsonl, line 1: no JSON"),
        ("[" * 100_000, "train.jsonl, line 1: no JSON"),
        ("[]", 'line 1: must be {"question"'),
        (line("q", "no number"), "line 1: the answer must end"),
        (line("q", "#### x"), "line 1: the answer must end"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "gsm8k_train.jsonl").write_text(text)
    with pytest.raises(TaskError) as caught:
        get_task("gsm8k", folder).problems("train", 1, 1)
    assert message in str(caught.value)


def test_a_folder_is_needed_for_problems_and_for_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="needs the folder of gsm8k_train"):
        get_task("gsm8k").problems("train", 1, 1)
    with pytest.raises(TaskError, match=r"gsm8k_test.jsonl cannot be read: No such file"):
        get_task("gsm8k", tmp_path).problems("train", 1, 1)
    with pytest.raises(TaskError, match="makes its own problems: give no folder"):
        get_task("gcd", tmp_path)


@pytest.mark.parametrize(
    ("split", "counts"),
    [("train", (2_432, 3_236, 1_097)), ("validation", (242, 325, 141)), ("test", (440, 654, 225))],
)
def test_the_real_files(data_folder: Path, split: Split, counts: tuple[int, ...]) -> None:
    task = get_task("gsm8k", data_folder)
    for level, count in zip(task.levels, counts, strict=True):
        problems = task.problems(split, level, count)
        assert all(task.verify(problem, task.solve(problem)) for problem in problems)
        assert not any(task.verify(problem, problem.answer + "1") for problem in problems)
        with pytest.raises(TaskError, match=f"has {count} problems"):
            task.problems(split, level, count + 1)
