"""Demonstrations to learn from, as conversations: what a careful author would give.

By default each one shows its steps (a chain of thought, cot), all of them right. On request some go
wrong in a step, notice it and mend it, and some answer at once, right or wrong.

The default was once a mixture, mostly of hasty answers, for which it was claimed that reinforcement
learning has something to give to a model that learned it. The claim is withdrawn: what it gives on
such a mixture is the choice of a mode, which a prompt that opens the think block gives as well.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.files import write_file
from ziphius.tasks import get_task
from ziphius.tasks.errors import TaskError
from ziphius.tasks.task import Problem
from ziphius.text.chat import Message

Kind = Literal["cot", "corrected", "direct", "noisy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Share = Annotated[float, Field(ge=0, le=1)]

_RESULT = re.compile(r"(.*=)(-?[0-9]+(?:\.[0-9]+)?)")
"""A line that says what something comes to."""


class DemonstrationConfig(Config):
    """What the demonstrations show."""

    cot: Share = 1.0
    """Share of demonstrations that show their steps; the others answer at once."""
    noise: Share = 0.0
    """Share of those that answer at once whose answer is wrong."""
    corrected: Share = 0.0
    """Share of those with steps in which one step goes wrong, is noticed and mended; where a task
    has no step that ends in a number, they stay as they are."""

    @model_validator(mode="after")
    def _settings_with_effect(self) -> Self:
        if self.noise > 0.0 and self.cot == 1.0:
            raise ValueError("noise: no demonstration answers at once. Lower cot too.")
        if self.corrected > 0.0 and self.cot == 0.0:
            raise ValueError("corrected: no demonstration shows its steps. Raise cot too.")
        return self


def kind_of(problem: Problem, config: DemonstrationConfig, seed: int) -> Kind:
    """Choose how a problem is demonstrated; it hangs on the seed and the problem's key alone."""
    random = _random(seed, problem, "kind")
    if random.random() >= config.cot:
        return "noisy" if random.random() < config.noise else "direct"
    if random.random() >= config.corrected:
        return "cot"
    return "corrected" if _results(get_task(problem.task).solve(problem)) else "cot"


def demonstrate(problem: Problem, kind: Kind, seed: int) -> tuple[Message, Message]:
    """Return a user's question and an assistant's answer, with reasoning if it shows steps.

    Raises:
        TaskError: the kind is `corrected`, and no step of the solution ends in a number.
    """
    answer = noisy_answer(problem, seed) if kind == "noisy" else problem.answer
    reasoning = None
    if kind in ("cot", "corrected"):
        steps = get_task(problem.task).solve(problem)
        reasoning = corrected(problem, steps, seed) if kind == "corrected" else steps
    return (
        Message("user", problem.question),
        Message("assistant", answer, reasoning_content=reasoning),
    )


def demonstrations(
    problems: Iterable[Problem], config: DemonstrationConfig, seed: int = 0
) -> Iterator[tuple[Message, Message]]:
    """Demonstrate each problem in its own kind, in the order given."""
    for problem in problems:
        yield demonstrate(problem, kind_of(problem, config, seed), seed)


def write_demonstrations(
    path: Path, problems: Iterable[Problem], config: DemonstrationConfig, seed: int = 0
) -> None:
    """Write JSON Lines that `ziphius sft` reads; beside the messages: task, level, key, kind."""
    lines = []
    for problem in problems:
        kind = kind_of(problem, config, seed)
        question, answer = demonstrate(problem, kind, seed)
        steps = answer.reasoning_content
        reasoning = {} if steps is None else {"reasoning_content": steps}
        entry = {
            "messages": [
                {"role": "user", "content": question.content},
                {"role": "assistant", **reasoning, "content": answer.content},
            ],
            "task": problem.task,
            "level": problem.level,
            "key": problem.key,
            "kind": kind,
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_file(path, "".join(lines))


def noisy_answer(problem: Problem, seed: int) -> str:
    """Return a wrong answer as somebody in a hurry would give it: near the right one."""
    task = get_task(problem.task)
    misses = sorted({miss for miss in _near(problem.answer) if not task.verify(problem, miss)})
    assert misses, problem
    return _random(seed, problem, "noise").choice(misses)


def corrected(problem: Problem, steps: str, seed: int) -> str:
    """Return the steps with a mistake in one result, and right after it `no, ` and the right line.

    Raises:
        TaskError: no step ends in a number.
    """
    lines, results = steps.splitlines(), _results(steps)
    if not results:
        raise TaskError(f"Task {problem.task}: no step of {problem.question!r} ends in a number.")
    random = _random(seed, problem, "slip")
    place = random.choice(list(results))
    before, number = results[place]
    wrong = random.choice(sorted(set(_near(number))))
    lines[place : place + 1] = [before + wrong, f"no, {lines[place]}"]
    return "\n".join(lines)


def _results(steps: str) -> dict[int, tuple[str, str]]:
    """Find the lines that end in `=` and a number, each cut before the number."""
    matches = {place: _RESULT.fullmatch(line) for place, line in enumerate(steps.splitlines())}
    return {place: (match[1], match[2]) for place, match in matches.items() if match}


def _near(answer: str) -> Iterator[str]:
    """List answers with one number a little off; where there is none, with letters mixed up."""
    least = 0 if answer.isdigit() else 1  # no fraction over 0, no factor 0, no -0
    for run in re.finditer(r"[0-9]+", answer):
        number = int(run[0])
        for off in (-10, -2, -1, 1, 2, 10):
            if number + off >= least and (abs(off) < 10 or number >= 10):
                yield answer[: run.start()] + str(number + off) + answer[run.end() :]
    if answer.startswith("-"):
        yield answer[1:]
    if not any(character.isdigit() for character in answer):
        glue = "" if answer.isalpha() else " "
        parts = answer.split(glue) if glue else list(answer)
        for i in range(len(parts)):
            if i + 1 < len(parts):
                yield glue.join([*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]])
            if len(parts) > 1:
                yield glue.join(parts[:i] + parts[i + 1 :])
            yield glue.join([*parts[: i + 1], *parts[i:]])


def _random(seed: int, problem: Problem, purpose: str) -> Random:
    content = f"{purpose} {seed} {problem.key}".encode()
    return Random(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()))
