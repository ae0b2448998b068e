"""GSM8K: grade-school mathematics in words (Cobbe et al. 2021, arXiv 2110.14168), from a folder.

The folder holds gsm8k_train.jsonl and gsm8k_test.jsonl, a problem a line with `question` and
`answer`; the answer is a text that ends in `#### 72`. Test problems are the test file's. Of the
train file a tenth is held out for validation by a hash of the content, the question without regard
to case and blanks, and what also stands in the test file is left out. A problem's level is the
length of its published solution.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ziphius.tasks.errors import TaskError
from ziphius.tasks.numbers import final_number, written
from ziphius.tasks.task import Problem, Split, Task, split_of

_CALCULATION = re.compile(r"<<[^<>]*>>")


class Gsm8k(Task):
    """Word problems whose answer is one number."""

    name = "gsm8k"
    levels = (1, 2, 3)

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        """Return problems of a split in the order of a hash of seed and question."""
        self.checked_level(level)
        found = [problem for problem in self._splits[split] if problem.level == level]
        if count > len(found):
            raise TaskError(
                f"Task {self.name} has {len(found)} problems of level {level} in the split "
                f"{split}, not {count}: ask for fewer."
            )
        return sorted(found, key=lambda problem: _place(seed, problem.key))[:count]

    def verify(self, problem: Problem, answer: str | None) -> bool:
        """Compare the number that an answer states (`ziphius.tasks.numbers`) with the right one."""
        number = None if answer is None else final_number(answer)
        return number is not None and number.equals(Fraction(problem.answer))

    def solve(self, problem: Problem) -> str:
        """Return the published solution without the marks of its calculator."""
        return f"{problem.facts['solution']}\nanswer={problem.answer}"

    @cached_property
    def _splits(self) -> dict[Split, list[Problem]]:
        if self.folder is None:
            raise TaskError(
                f"Task {self.name} needs the folder of gsm8k_train.jsonl and gsm8k_test.jsonl."
            )
        test = list(_read(self.folder / "gsm8k_test.jsonl"))
        tested = {problem.content for problem in test}
        splits: dict[Split, list[Problem]] = {"train": [], "validation": [], "test": test}
        for problem in _read(self.folder / "gsm8k_train.jsonl"):
            if problem.content not in tested:
                held_out = split_of(problem.content) == "validation"
                splits["validation" if held_out else "train"].append(problem)
        return splits


def _read(path: Path) -> Iterator[Problem]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}.") from error
    contents: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            problem = _problem(line, f"{path}, line {number}")
            if problem.content not in contents:
                contents.add(problem.content)
                yield problem


def _problem(line: bytes, where: str) -> Problem:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: no JSON: {error}.") from error
    fields = data if isinstance(data, dict) else {}
    question, answer = fields.get("question"), fields.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TaskError(f'{where}: must be {{"question": "...", "answer": "..."}}.')
    solution, mark, _ = answer.rpartition("####")
    number = final_number(answer)
    if not mark or number is None:
        raise TaskError(f"{where}: the answer must end in `#### ` and a number.")
    steps = len(_CALCULATION.findall(solution))
    facts = {"solution": _CALCULATION.sub("", solution).strip()}
    level = 1 if steps <= 2 else 2 if steps <= 4 else 3
    return Problem(
        task=Gsm8k.name,
        level=level,
        question=question.strip(),
        answer=written(number.value),
        content=" ".join(question.lower().split()),
        facts=facts,
    )


def _place(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode()).digest()
