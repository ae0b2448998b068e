"""Demonstrations of mixed quality to learn from, as conversations.

Real data are mixed: some people show careful work, most answer at once, and some of those are
wrong. A model that has learned such a mixture until it improves no more is what reinforcement
learning has something to give to: it finds out by itself that thinking pays. With these shares it
did (docs/lab/2026-11-22-what-fifteen-minutes-teach.md).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Literal, get_args

from pydantic import Field

from ziphius.core.config import Config
from ziphius.core.files import write_file
from ziphius.tasks import get_task
from ziphius.tasks.task import Problem
from ziphius.text.chat import Message

Kind = Literal["worked", "direct", "slip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Share = Annotated[float, Field(ge=0, le=1)]


class DemonstrationConfig(Config):
    """How careful the demonstrations are."""

    worked: Share = 0.3
    """Share of demonstrations that show their steps, all of them right."""
    slip: Share = 0.35
    """Share of the others, which answer at once, that are wrong by a slip."""


def kind_of(problem: Problem, config: DemonstrationConfig, seed: int) -> Kind:
    """Choose how a problem is demonstrated; it hangs on the seed and the problem's key alone."""
    random = _random(seed, problem, "kind")
    if random.random() < config.worked:
        return "worked"
    return "slip" if random.random() < config.slip else "direct"


def demonstrate(problem: Problem, kind: Kind, seed: int) -> tuple[Message, Message]:
    """Return a user's question and an assistant's answer; `worked` alone has reasoning."""
    answer = problem.answer if kind != "slip" else slip(problem, seed)
    reasoning = get_task(problem.task).solve(problem) if kind == "worked" else None
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
        reasoning = {"reasoning_content": answer.reasoning_content} if kind == "worked" else {}
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


def slip(problem: Problem, seed: int) -> str:
    """Return a wrong answer as somebody in a hurry would give it: near the right one."""
    task = get_task(problem.task)
    misses = sorted({miss for miss in _near(problem.answer) if not task.verify(problem, miss)})
    assert misses, problem
    return _random(seed, problem, "slip").choice(misses)


def _near(answer: str) -> Iterator[str]:
    """List answers with one number a little off; where there is none, with letters mixed up."""
    least = 0 if answer.lstrip("-").isdigit() else 1  # no fraction over 0, no factor 0
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
