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
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from ziphius.tasks.errors import TaskError
from ziphius.tasks.task import Problem, Split, Task, split_of

LONGEST_TEXT = 20_000
"""Characters of an answer with its explanation; what is longer is wrong without being read."""

_RUN = re.compile(r"\$?\d[\d.,]*")
_NUMBER = re.compile(r"([0-9]{1,3}(,[0-9]{3}){1,9}|[0-9]{1,30})(\.[0-9]{1,30})?")
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
        """Compare the final number: the one after the last `####`, or else the last of the text."""
        if answer is None or len(answer) > LONGEST_TEXT:
            return False
        number = final_number(answer)
        return number is not None and number == Decimal(problem.answer)

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


def final_number(text: str) -> Decimal | None:
    """Return the number that a text ends in, read exactly; None without one.

    Commas between thousands and a dollar sign belong to the number. What else is made of digits,
    points and commas is none, and neither are digits of other scripts.
    """
    after = text.rpartition("####")[2]
    runs = list(_RUN.finditer(after))
    if not runs:
        return None
    digits = runs[-1][0].lstrip("$").rstrip(".,")
    if not _NUMBER.fullmatch(digits):
        return None
    value = Decimal(digits.replace(",", ""))
    return -value if _is_negative(after[: runs[-1].start()]) else value


def _is_negative(before: str) -> bool:
    """Tell a sign from the minus of a subtraction: no word or bracket stands before a sign."""
    return re.search(r"(?<![\w)])-$", before) is not None


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
        answer=f"{number:f}",
        content=" ".join(question.lower().split()),
        facts=facts,
    )


def _place(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode()).digest()
