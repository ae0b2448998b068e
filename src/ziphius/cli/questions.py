"""From the rows of prompts to what the engine is asked, with the options of `generate`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field, ValidationError

from ziphius.cli.answering import AnswerOptions, token_limit
from ziphius.cli.engine_options import EngineOptions
from ziphius.cli.prompts import PromptRow
from ziphius.core.config import explain
from ziphius.core.errors import ConfigError, ZiphiusError
from ziphius.engine.sampling_params import MAX_COMPLETIONS, SamplingParams

if TYPE_CHECKING:
    from ziphius.engine.answer import Prompt
    from ziphius.engine.answering import Question
    from ziphius.engine.load import Loaded
    from ziphius.text.chat import ChatFormat

DEFAULT_MAX_NEW_TOKENS = 1024


class QuestionOptions(EngineOptions, AnswerOptions):
    """Options that say what is asked, of all prompts of a command."""

    n: Annotated[int, Field(ge=1, le=128)] = 1
    """Answers to each prompt."""
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, tyro.conf.arg(metavar="INT")] = (
        None
    )
    """Write tokens and their log-probabilities beside each answer, and at each place this many of
    the most likely tokens."""
    raw: bool = False
    """Continue the prompt as plain text, without a chat format."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """System message before each prompt."""


class Questions:
    """What rows ask of a model.

    Args:
        options: of the command.
        loaded: the model.
        rows: all of them, those too that are not asked any more.
    """

    def __init__(
        self, options: QuestionOptions, loaded: "Loaded", rows: Sequence[PromptRow]
    ) -> None:
        from ziphius.engine.requests import first_sequence_ids

        self._options, self._loaded = options, loaded
        self.chat_format = chat_format_of(options, loaded)
        self._common = options.params(1, n=options.n, logprobs=options.logprobs or 0).model_dump()
        numbers = first_sequence_ids((self._key(row), self.completions(row)) for row in rows)
        self._first_numbers = dict(zip((row.number for row in rows), numbers, strict=True))

    def of(self, row: PromptRow) -> "Question":
        """Return what a row asks.

        Raises:
            ZiphiusError: why it cannot be asked.
        """
        from ziphius.engine.answering import Question

        if row.problem is not None:
            raise ConfigError(row.problem)
        prompt = self._prompt(row)
        limit = row.params.get("max_tokens")
        if limit is None:
            limit = token_limit(self._options, DEFAULT_MAX_NEW_TOKENS, self._loaded, prompt)
        try:
            params = SamplingParams(**self._common | dict(row.params) | {"max_tokens": limit})
        except ValidationError as error:
            raise ConfigError(explain(error)) from error
        adapter = self._options.default_adapter if row.adapter is None else row.adapter
        return Question(prompt, params, adapter, self._first_numbers[row.number])

    def each(self, rows: Iterable[PromptRow]) -> "Iterator[Question | ConfigError]":
        """Return what rows ask, one after the other; an error stands for a row that cannot."""
        for row in rows:
            try:
                yield self.of(row)
            except ZiphiusError as error:
                yield ConfigError(str(error))

    def completions(self, row: PromptRow) -> int:
        """Return how many answers a row asks for; 0 where that is no number, which is refused."""
        count = row.params.get("best_of") or row.params.get("n", self._options.n)
        is_one = isinstance(count, int) and 0 < count <= MAX_COMPLETIONS
        return count if is_one and row.problem is None else 0

    def _key(self, row: PromptRow) -> str | None:
        """Return what rows of equal prompts share; None for one with a seed of its own."""
        if "seed" in row.params:
            return None
        return json.dumps([row.text, repr(row.messages), row.adapter])

    def _prompt(self, row: PromptRow) -> "Prompt":
        from ziphius.engine.answer import chat_prompt, raw_prompt
        from ziphius.text.chat import Message

        options, tokenizer = self._options, self._loaded.tokenizer
        if self.chat_format is None:
            if row.messages:
                raise ConfigError(
                    "A prompt of messages needs a chat format: choose one with --chat-format, or "
                    "give texts."
                )
            return raw_prompt(row.text, tokenizer)
        messages = list(row.messages) or [Message("user", row.text)]
        if options.system is not None:
            messages.insert(0, Message("system", options.system))
        return chat_prompt(messages, tokenizer, self.chat_format, thinking=options.thinking or None)


def chat_format_of(options: QuestionOptions, loaded: "Loaded") -> "ChatFormat | None":
    """Take the format asked for, else the model's own; None to continue plain text."""
    from ziphius.text.chat import get_chat_format

    if options.raw:
        return None
    name = options.chat_format or loaded.tokenizer.chat_format
    if name is None:
        refuse_chat(options, "the model has no chat format, so the prompt is continued as text")
        return None
    return get_chat_format(name)


def refuse_chat(options: QuestionOptions, reason: str) -> None:
    """Raise if an option of conversations is set although there is none."""
    for option in ("chat_format", "thinking", "system"):
        if getattr(options, option):
            raise ConfigError(f"{reason}: --{option.replace('_', '-')} would have no effect")
