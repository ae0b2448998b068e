"""`ziphius generate`: answers to prompts, from the command line, a file or standard input."""

import json
import sys
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import tyro
from pydantic import Field, model_validator
from rich.console import Console

from ziphius.cli.answering import Answer, AnswerPrinter, Speed
from ziphius.cli.engine_options import Session, load_model, open_session
from ziphius.cli.options import AsJson
from ziphius.cli.prompts import PromptFile, PromptRow, read_prompts
from ziphius.cli.questions import QuestionOptions, Questions, refuse_chat
from ziphius.core.errors import ConfigError

if TYPE_CHECKING:
    from ziphius.engine.answering import AnswerPiece, Question


class GenerateConfig(QuestionOptions):
    """What `ziphius generate` needs to know."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Model folder, .gguf file, or preset (with random weights)."""
    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT ...")
    ] = ()
    """What to answer, each on its own; - reads one from standard input."""
    file: Annotated[Path | None, tyro.conf.arg(name="prompts", metavar="FILE")] = None
    """File of prompts: a text on each line, or rows (JSON Lines, parquet) with a prompt or
    messages, and if wanted an id, sampling_params and an adapter; - is standard input."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a line of JSON for each prompt to a new file, in their order; what is stopped goes on
    when the command is given again. - is standard output."""
    batch_size: Annotated[int, Field(ge=1, le=2048)] = 16
    """Answers generated at the same time."""
    as_json: AsJson = False
    """Print one JSON document with tokens and log-probabilities instead of text."""

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        if bool(self.prompts) == (self.file is not None):
            raise ConfigError(
                "give a prompt, or - to read one from standard input, or else a file with --prompts"
            )
        if self.as_json and self.out is not None:
            raise ConfigError("json and out: give one of them")
        if self.logprobs is not None and not self.as_json and self.out is None:
            raise ConfigError("--logprobs would have no effect on text: add --json or --out")
        if self.prompts.count("-") > 1:
            raise ConfigError("- stands for all of standard input: give it once")
        if self.n > 1 and self.temperature == 0:
            raise ConfigError("n answers at temperature 0 would all be the same: leave out one")
        if self.file is None and len(self.adapters) > (self.default_adapter != ""):
            raise ConfigError(
                "--adapter NAME=FOLDER is for prompts of a file, which name it: give the folder "
                "alone"
            )
        if self.raw:
            refuse_chat(self, "--raw takes the prompt as it is")
        return self


def generate(config: GenerateConfig) -> None:
    """Let a model answer prompts and print the answers as they come.

    The prompt is a message in the model's chat format; a model without one, or --raw, continues
    it as text. The answer goes to standard output; what the model thinks and the speed go to
    standard error. The same command gives the same answer: --seed asks for another.

    A row of a file of prompts may look like
    {"id": 7, "prompt": "Name a whale.", "sampling_params": {"n": 4, "max_tokens": 50, "seed": 1}}
    or have "messages", and settings as vLLM names them. With --out such work goes on where it was
    stopped, by Ctrl-C or a crash; each row has the same answers however it is batched. Rows that
    cannot be asked get an "error" in place of "outputs", and make the exit code 1.

    Example:
        ziphius generate v3-tiny "The deepest-diving whale" --raw --max-new-tokens 20
        ziphius generate ./my-model "What is 7 * 8?" --temperature 0
        ziphius generate model.gguf "Name a whale." --n 3 --seed 1 --json
        ziphius generate ./my-model "A whale, please" --json-schema whale.json
        ziphius generate ./my-model "Deep or shallow?" --choice deep --choice shallow
        ziphius generate ./my-model --prompts questions.jsonl --batch-size 32 --out answers.jsonl
        ziphius generate ./my-model --prompts - --out - < questions.jsonl | jq .outputs[0].text
        ziphius generate ./my-model "Name a whale." --adapter runs/lora/checkpoints/step-25
        ziphius generate ./my-model "Say it again: ..." --speculative ngram --verbose
    """
    prompts = _prompts(config)
    if config.out is not None:
        from ziphius.cli.batch import Job, answer_to_file, answer_to_stdout

        job = Job(config.model, config, config.batch_size, prompts)
        if str(config.out) == "-":
            answer_to_stdout(job)
        else:
            answer_to_file(job, config.out)
        return
    for row in prompts.rows:
        if row.problem is not None:
            raise ConfigError(f"{row.where}: {row.problem}")
    loaded = load_model(config.model, config)
    questions = Questions(config, loaded, prompts.rows)
    asked = [questions.of(row) for row in prompts.rows]
    chat_format = None if questions.chat_format is None else questions.chat_format.name
    at_once = min(config.batch_size, sum(question.params.completions for question in asked))
    with open_session(loaded, config, at_once) as session:
        show = _Show(config, session, asked)
        try:
            if config.as_json:
                show.document(chat_format, is_random=loaded.is_random)
            elif len(asked) == 1 and asked[0].params.completions == 1:
                show.one()
            else:
                show.in_order()
        finally:  # leaving by Ctrl-C too: what was written so far stays
            show.say_speed()


class _Show:
    """Answers to questions, shown as they come or at the end."""

    def __init__(
        self, config: GenerateConfig, session: Session, questions: "Sequence[Question]"
    ) -> None:
        self._config, self._session, self._questions = config, session, questions
        self._answers = {
            (row, sample): Answer()
            for row, question in enumerate(questions)
            for sample in range(question.params.completions)
        }
        sizes = (len(questions[row].prompt.ids) for row, _ in self._answers)
        self._speed = Speed(sum(sizes), session.cached_tokens)

    def one(self) -> None:
        """Print the only answer word by word."""
        printer = AnswerPrinter(Console(), Console(stderr=True))
        with closing(self._steps()) as steps:
            try:
                for step in steps:
                    for piece in step:
                        printer.show(piece.events)
            finally:
                printer.end()

    def in_order(self) -> None:
        """Print each answer as soon as it and those before it are finished."""
        console, error_console = Console(), Console(stderr=True)
        left = deque(self._answers.items())
        with closing(self._steps()) as steps:
            for _ in steps:
                while left and left[0][1].finish_reason:
                    (row, sample), answer = left.popleft()
                    title = f"prompt {row + 1}, answer {sample + 1}"
                    console.rule(title, align="left")
                    printer = AnswerPrinter(console, error_console)
                    printer.show(answer.events)
                    printer.end()

    def document(self, chat_format: str | None, *, is_random: bool) -> None:
        """Print all of them in one document."""
        with closing(self._steps()) as steps:
            deque(steps, maxlen=0)
        speed = self._speed
        document = {
            "model": self._config.model,
            "random_weights": is_random,
            "chat_format": chat_format,
            "answers": [
                {"prompt": row, "sample": sample} | answer.document(tokens=True)
                for (row, sample), answer in self._answers.items()
            ],
            "prompt_tokens": speed.prompt_tokens,
            "new_tokens": speed.new_tokens,
            "prompt_s": speed.prompt_s,
            "decode_s": speed.decode_s,
        }
        print(json.dumps(document, indent=2))

    def _steps(self) -> "Generator[list[AnswerPiece], None, None]":
        """Run the questions and keep their books."""
        with closing(self._session.answers(self._questions)) as steps:
            for step in steps:
                self._speed.step(len(step))
                for piece in step:
                    self._answers[piece.row, piece.piece.sample].add(piece)
                yield step

    def say_speed(self) -> None:
        """Sum up on standard error."""
        if self._speed.new_tokens:
            print(self._speed.line(), file=sys.stderr)


def _prompts(config: GenerateConfig) -> PromptFile:
    """Read what is to be answered."""
    if config.file is not None:
        return read_prompts(config.file)
    texts = [_read_stdin() if text == "-" else text for text in config.prompts]
    rows = [PromptRow(n, f"prompt {n + 1}", text) for n, text in enumerate(texts)]
    return PromptFile(rows, json.dumps(texts))


def _read_stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text: {error}") from error
