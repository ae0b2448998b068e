"""`ziphius generate`: answers to prompts, from the command line or standard input."""

import json
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TextIO

import tyro
from pydantic import Field, model_validator
from rich.console import Console

from ziphius.cli.answering import AnswerOptions, AnswerPrinter, Speed, load_model, token_limit
from ziphius.cli.options import AsJson
from ziphius.cli.prompts import Asked, read_prompts
from ziphius.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from ziphius.engine.answer import AnswerPiece, Prompt
    from ziphius.engine.load import Loaded
    from ziphius.text.chat import ChatFormat, Event

DEFAULT_MAX_NEW_TOKENS = 1024


class GenerateConfig(AnswerOptions):
    """What `ziphius generate` needs to know."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Model folder, .gguf file, or preset (with random weights)."""
    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT ...")
    ] = ()
    """What to answer, each on its own; - reads one from standard input."""
    file: Annotated[Path | None, tyro.conf.arg(name="prompts", metavar="FILE")] = None
    """File of prompts, one on each line: text, or JSON with a prompt or messages, and an id if
    wanted; - is standard input."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the answers to a new file of JSON Lines, one for each answer in order."""
    as_jsonl: Annotated[bool, tyro.conf.arg(name="jsonl")] = False
    """Print such lines instead of text."""
    batch_size: Annotated[int, Field(ge=1, le=2048)] = 16
    """Answers generated at the same time."""
    n: Annotated[int, Field(ge=1, le=128)] = 1
    """Answers to each prompt."""
    raw: bool = False
    """Continue the prompt as plain text, without a chat format."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """System message before each prompt."""
    as_json: AsJson = False
    """Print one JSON document with tokens and log-probabilities instead of text."""

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        if bool(self.prompts) == (self.file is not None):
            raise ConfigError(
                "give a prompt, or - to read one from standard input, or else a file with --prompts"
            )
        if sum((self.as_json, self.as_jsonl, self.out is not None)) > 1:
            raise ConfigError("json, jsonl and out: give one of them")
        if self.prompts.count("-") > 1:
            raise ConfigError("- stands for all of standard input: give it once")
        if self.n > 1 and self.temperature == 0:
            raise ConfigError("n answers at temperature 0 would all be the same: leave out one")
        if self.raw:
            _refuse(self, "--raw takes the prompt as it is")
        return self


@dataclass
class _Answer:
    """One completion, as far as it has come."""

    prompt: int
    sample: int
    events: "list[Event]" = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: "AnswerPiece") -> None:
        self.events += piece.events
        self.token_ids.append(piece.token.token_id)
        self.logprobs.append(piece.token.logprob)
        self.finish_reason = piece.finish_reason

    def as_json(self) -> dict[str, Any]:
        from ziphius.text.chat import message_of

        message = message_of(self.events)
        return {
            "prompt": self.prompt,
            "sample": self.sample,
            "text": message.content,
            "reasoning": message.reasoning_content,
            "tool_calls": [
                {"name": call.name, "arguments": call.arguments, "complete": call.complete}
                for call in message.tool_calls
            ],
            "token_ids": self.token_ids,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }


def generate(config: GenerateConfig) -> None:
    """Let a model answer prompts and print the answers as they come.

    The prompt is a message in the model's chat format; a model without one, or --raw, continues
    it as text. The answer goes to standard output; what the model thinks and the speed go to
    standard error. The same command gives the same answer: --seed asks for another.

    Example:
        ziphius generate v3-tiny "The deepest-diving whale" --raw --max-new-tokens 20
        ziphius generate ./my-model "What is 7 * 8?" --temperature 0
        ziphius generate model.gguf "Name a whale." --n 3 --seed 1 --json
        ziphius generate ./my-model --prompts questions.jsonl --batch-size 32 --out answers.jsonl
    """
    asked = _asked(config)
    if config.out is not None and config.out.exists():
        raise OutputError(f"{config.out} is there already. Choose another file, or remove it.")
    loaded = load_model(config.model, config)
    chat_format = _chat_format(config, loaded)
    prompts = [_prompt(one, config, loaded, chat_format) for one in asked]
    answers = [
        _Answer(prompt, sample) for prompt in range(len(prompts)) for sample in range(config.n)
    ]
    speed = Speed(sum(len(prompts[answer.prompt].ids) for answer in answers))
    # Leaving by Ctrl-C too: what was written so far stays, and its speed is told.
    with closing(_steps(config, loaded, prompts, answers, speed)) as steps:
        try:
            if config.as_json:
                deque(steps, maxlen=0)
                print(_document(config, loaded, chat_format, answers, speed))
            elif config.as_jsonl:
                _write_lines(steps, asked, answers, sys.stdout)
            elif config.out is not None:
                with _new_file(config.out) as file:
                    _write_lines(steps, asked, answers, file)
            elif len(answers) == 1:
                _stream(steps)
            else:
                _print_in_order(steps, answers)
        finally:
            if speed.new_tokens:
                print(speed.line(), file=sys.stderr)


def _steps(
    config: GenerateConfig,
    loaded: "Loaded",
    prompts: "list[Prompt]",
    answers: list[_Answer],
    speed: Speed,
) -> "Generator[list[AnswerPiece], None, None]":
    """Run the answers, `batch_size` of them at any time, and keep their books."""
    from ziphius.engine.answer import stream_answers
    from ziphius.engine.build import build_engine
    from ziphius.engine.config import EngineConfig

    limits = [token_limit(config, DEFAULT_MAX_NEW_TOKENS, loaded, prompt) for prompt in prompts]
    engine = build_engine(
        loaded.model,
        EngineConfig(max_num_seqs=config.batch_size),
        vocab_limit=loaded.tokenizer.vocab_size,
    )
    for step in stream_answers(
        engine,
        loaded.tokenizer,
        [prompts[answer.prompt] for answer in answers],
        max_new_tokens=[limits[answer.prompt] for answer in answers],
        sequence_ids=[answer.sample for answer in answers],
        sampling=config.sampling,
        stop=config.stop,
        ignore_eos=config.ignore_eos,
    ):
        speed.step(len(step))
        for piece in step:
            answers[piece.row].add(piece)
        yield step


def _stream(steps: "Iterator[list[AnswerPiece]]") -> None:
    printer = AnswerPrinter(Console(), Console(stderr=True))
    try:
        for [piece] in steps:
            printer.show(piece.events)
    finally:
        printer.end()


def _print_in_order(steps: "Iterator[list[AnswerPiece]]", answers: list[_Answer]) -> None:
    """Print each answer as soon as it and those before it are finished."""
    console, error_console = Console(), Console(stderr=True)
    for answer in _finished_in_order(steps, answers):
        console.rule(f"prompt {answer.prompt + 1}, answer {answer.sample + 1}", align="left")
        printer = AnswerPrinter(console, error_console)
        printer.show(answer.events)
        printer.end()


def _write_lines(
    steps: "Iterator[list[AnswerPiece]]",
    asked: list[Asked],
    answers: list[_Answer],
    file: TextIO,
) -> None:
    """Write each answer as a line of JSON as soon as it and those before it are finished."""
    for answer in _finished_in_order(steps, answers):
        name = asked[answer.prompt].name
        line = answer.as_json() | ({} if name is None else {"id": name})
        file.write(json.dumps(line) + "\n")
        file.flush()


def _finished_in_order(
    steps: "Iterator[list[AnswerPiece]]", answers: list[_Answer]
) -> Iterator[_Answer]:
    """Yield each answer as soon as it and those before it are finished."""
    done = 0
    for _ in steps:
        while done < len(answers) and answers[done].finish_reason:
            yield answers[done]
            done += 1


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """Open a file that is not there yet; what was written of it stays."""
    try:
        with path.open("x", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error


def _document(
    config: GenerateConfig,
    loaded: "Loaded",
    chat_format: "ChatFormat | None",
    answers: list[_Answer],
    speed: Speed,
) -> str:
    document = {
        "model": config.model,
        "random_weights": loaded.is_random,
        "chat_format": chat_format.name if chat_format else None,
        "answers": [answer.as_json() for answer in answers],
        "prompt_tokens": speed.prompt_tokens,
        "new_tokens": speed.new_tokens,
        "prompt_s": speed.prompt_s,
        "decode_s": speed.decode_s,
    }
    return json.dumps(document, indent=2)


def _chat_format(config: GenerateConfig, loaded: "Loaded") -> "ChatFormat | None":
    """Take the format asked for, else the model's own; None to continue plain text."""
    from ziphius.text.chat import get_chat_format

    if config.raw:
        return None
    name = config.chat_format or loaded.tokenizer.chat_format
    if name is None:
        _refuse(config, f"{config.model} has no chat format, so the prompt is continued as text")
        return None
    return get_chat_format(name)


def _refuse(config: GenerateConfig, reason: str) -> None:
    """Raise if an option of conversations is set although there is none."""
    for option in ("chat_format", "thinking", "system"):
        if getattr(config, option):
            raise ConfigError(f"{reason}: --{option.replace('_', '-')} would have no effect")


def _asked(config: GenerateConfig) -> list[Asked]:
    """Read what is to be answered."""
    if config.file is not None:
        return read_prompts(config.file)
    return [Asked(_read_stdin() if text == "-" else text) for text in config.prompts]


def _prompt(
    asked: Asked, config: GenerateConfig, loaded: "Loaded", chat_format: "ChatFormat | None"
) -> "Prompt":
    from ziphius.engine.answer import chat_prompt, raw_prompt
    from ziphius.text.chat import Message

    if chat_format is None:
        if asked.messages:
            raise ConfigError(
                "A prompt of messages needs a chat format: choose one with --chat-format, or give "
                "texts."
            )
        return raw_prompt(asked.text, loaded.tokenizer)
    messages = list(asked.messages) or [Message("user", asked.text)]
    if config.system is not None:
        messages.insert(0, Message("system", config.system))
    return chat_prompt(messages, loaded.tokenizer, chat_format, thinking=config.thinking or None)


def _read_stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text: {error}") from error
