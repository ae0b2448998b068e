"""A file of prompts answered into a file: rows that go wrong alone, and work that can be resumed.

Answers go to FILE.partial as they come, in any order, and at the end to FILE in the order of their
prompts. What is there in FILE.partial is not asked again.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.text import Text

from ziphius.cli.answering import Answer, told
from ziphius.cli.engine_options import EngineOptions, load_model, open_session
from ziphius.cli.prompts import PromptFile, PromptRow
from ziphius.cli.questions import QuestionOptions, Questions
from ziphius.core.errors import ConfigError
from ziphius.core.files import existing_path, new_file, refuse_existing
from ziphius.core.journal import Journal

if TYPE_CHECKING:
    from ziphius.engine.answering import AnswerPiece, Question

SHOWN = 10
"""Rows with an error that are named one by one; the others are counted."""
_OUTSIDE = {*EngineOptions.model_fields} - {"device", "dtype", "adapter", "cache_dtype"}
"""Options that change no answer."""


class Job(NamedTuple):
    """What is answered, and how."""

    model: str
    options: QuestionOptions
    batch_size: int
    prompts: PromptFile


def answer_to_file(job: Job, path: Path) -> None:
    """Answer all rows into a new file of JSON Lines, or go on where an earlier call stopped.

    Raises:
        OutputError: the file is there already, or cannot be written.
        ConfigError: what is there of it was begun with other settings.
        SystemExit: 1 if a row has an error.
    """
    refuse_existing(path)
    rows = job.prompts.rows
    partial = path.with_name(f"{path.name}.partial")
    with Journal(partial, _about(job)) as journal:
        if journal:
            has = f"{partial} has {len(journal):,} of {len(rows):,} rows"
            print(f"{has}: they are not asked again", file=sys.stderr)
        left = [row for row in rows if row.number not in journal]
        try:
            if left:
                _answer(job, left, lambda row, result: journal.add(row.number, result))
            _finish(journal, path)
        finally:
            if not path.exists():
                done = f"{len(journal):,} of {len(rows):,} rows are in {partial}"
                print(f"{done}: the same command goes on from there", file=sys.stderr)
        wrong = sum(b'"error"' in line and _is_wrong(json.loads(line)) for line in journal.lines())
        journal.discard()
    _report(wrong, len(rows), str(path))


def answer_to_stdout(job: Job) -> None:
    """Print a line of JSON for each row as soon as it and those before it are answered.

    Raises:
        SystemExit: 1 if a row has an error.
    """
    waiting: dict[int, dict[str, Any]] = {}
    printed = wrong = 0

    def put(row: PromptRow, result: dict[str, Any]) -> None:
        nonlocal printed, wrong
        wrong += _is_wrong(result)
        waiting[row.number] = {"row": row.number} | result
        while printed in waiting:
            print(json.dumps(waiting.pop(printed)), flush=True)
            printed += 1

    _answer(job, job.prompts.rows, put)
    _report(wrong, len(job.prompts.rows), "the output")


def _finish(journal: Journal, path: Path) -> None:
    with new_file(path) as place, place.open("wb") as file:
        file.writelines(journal.lines())


def _is_wrong(result: dict[str, Any]) -> bool:
    """Tell whether something went wrong with a row, or with one of its answers."""
    return any("error" in one for one in (result, *result.get("outputs", ())))


def _report(wrong: int, rows: int, where: str) -> None:
    if wrong:
        print(f'{wrong:,} of {rows:,} rows have an "error" in {where}', file=sys.stderr)
        raise SystemExit(1)


def _answer(
    job: Job, rows: Sequence[PromptRow], put: Callable[[PromptRow, dict[str, Any]], None]
) -> None:
    """Ask rows, and hand out what becomes of each."""
    _note_ids(job.prompts.rows)
    loaded = load_model(job.model, job.options)
    questions = Questions(job.options, loaded, job.prompts.rows)
    progress = _Progress(len(rows), len(job.prompts.rows))
    at_once = min(job.batch_size, sum(questions.completions(row) for row in rows))
    with closing(progress), open_session(loaded, job.options, max(1, at_once)) as session:
        asked = _Asked(questions, job.options)
        with closing(session.answers(asked.each(rows), keep_errors=True)) as steps:
            for step in steps:
                progress.step(step)
                for piece in step:
                    if (result := asked.add(piece)) is not None:
                        row = rows[piece.row]
                        put(row, result)
                        progress.done(row, result)


def _note_ids(rows: Sequence[PromptRow]) -> None:
    names = Counter(json.dumps(row.name) for row in rows if row.name is not None)
    if twice := [name for name, count in names.items() if count > 1]:
        ids = f"id {twice[0]} stands" if len(twice) == 1 else f"{len(twice):,} ids stand"
        print(f'{ids} on several rows: "row" tells them apart', file=sys.stderr)


class _Asked:
    """Questions on their way, and their answers so far."""

    def __init__(self, questions: Questions, options: QuestionOptions) -> None:
        self._questions, self._options = questions, options
        self._rows: dict[int, tuple[PromptRow, Question | None, list[Answer]]] = {}
        self._scores: dict[int, Any] = {}

    def each(self, rows: Sequence[PromptRow]) -> "Iterator[Question | ConfigError]":
        """Ask one row after the other."""
        for place, (row, asked) in enumerate(zip(rows, self._questions.each(rows), strict=True)):
            question = None if isinstance(asked, Exception) else asked
            count = 1 if question is None else question.params.completions
            self._rows[place] = row, question, [Answer() for _ in range(count)]
            yield asked

    def add(self, new: "AnswerPiece") -> dict[str, Any] | None:
        """Take a piece in; return what becomes of its row, if it is the last of it."""
        row, question, answers = self._rows[new.row]
        answers[new.piece.sample].add(new)
        output = new.piece.output
        if output is not None and output.prompt_scores is not None:
            self._scores[new.row] = [[one.logprob, told(one.top)] for one in output.prompt_scores]
        refused = output is None
        if not refused and any(answer.finish_reason is None for answer in answers):
            return None
        del self._rows[new.row]
        name = {} if row.name is None else {"id": row.name}
        if refused or question is None:
            return name | {"error": f"{row.where}: {new.piece.error}"}
        scores = self._scores.pop(new.row, None)
        params = question.params
        if len(answers) > params.n:
            answers = sorted(answers, key=lambda one: one.mean_logprob, reverse=True)[: params.n]
        tokens = self._options.logprobs is not None or "logprobs" in row.params
        return {
            **name,
            "prompt_tokens": len(question.prompt.ids),
            **({} if scores is None else {"prompt_logprobs": scores}),
            "outputs": [answer.document(tokens=tokens) for answer in answers],
        }


class _Progress:
    """The line that shows how far a batch is: rows, tokens per second, and how long it will take.

    Args:
        left: rows to answer.
        total: rows of the file.
    """

    def __init__(self, left: int, total: int) -> None:
        from ziphius.train.live import LiveLine

        self._line: LiveLine = LiveLine(Console(stderr=True))
        self._left, self._total = left, total
        self._tokens = self._done = self._wrong = 0
        self._start = self._shown = time.perf_counter()

    def step(self, pieces: "Sequence[AnswerPiece]") -> None:
        """Count the tokens of a step."""
        self._tokens += sum(piece.piece.output is not None for piece in pieces)
        if time.perf_counter() - self._shown > 0.2:
            self._show()

    def done(self, row: PromptRow, result: dict[str, Any]) -> None:
        """Count a row, and name it if it went wrong."""
        self._done += 1
        if "error" in result:
            self._wrong += 1
            if self._wrong <= SHOWN:
                self._say(f"Skipped: {result['error']}")

    def close(self) -> None:
        """Leave the last figures."""
        self._show()
        if self._wrong > SHOWN:
            self._say(f"Skipped: {self._wrong - SHOWN:,} more rows.")
        self._line.close()

    def _say(self, text: str) -> None:
        self._line.console.print(Text(text), soft_wrap=True)

    def _show(self) -> None:
        from ziphius.train.live import duration

        self._shown = time.perf_counter()
        elapsed = self._shown - self._start
        done = self._total - self._left + self._done
        parts = [f"{done:,} of {self._total:,} rows", f"{self._tokens / elapsed:,.0f} tokens/s"]
        if self._done:
            parts.append(f"ETA {duration((self._left - self._done) * elapsed / self._done)}")
        self._line.show("  ".join(parts))


def _about(job: Job) -> dict[str, Any]:
    """Say what answers hang on, by the names of options."""
    options = job.options.model_dump(
        mode="json", include={*QuestionOptions.model_fields} - _OUTSIDE
    )
    for name in ("json_schema", "grammar"):
        options.pop(name)
    form = job.options.params(1).structured_outputs
    return {
        "file of prompts": job.prompts.sha256,
        "model": _identity(job.model),
        **options,
        "adapter": {name: _identity(str(path)) for name, path in job.options.adapters.items()},
        "form": None if form is None else form.model_dump(mode="json"),
    }


def _identity(name: str) -> list[Any]:
    """Tell a model's files from others without reading them; of a preset its name."""
    path = existing_path(name)
    if path is None:
        return [name]
    kept = (".safetensors", ".json", ".gguf", ".jinja")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in kept)
    return [[file.name, (found := file.stat()).st_size, found.st_mtime_ns] for file in files]
