"""What `generate` and `chat` share: their options, and how an answer is shown as it comes."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro
from pydantic import Field, model_validator
from rich.console import Console
from rich.text import Text

from ziphius.core.errors import ConfigError
from ziphius.engine.sampling_params import SamplingParams, StructuredOutputs
from ziphius.ops.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from ziphius.engine.answer import Prompt
    from ziphius.engine.answering import AnswerPiece
    from ziphius.engine.load import Loaded
    from ziphius.engine.sampler import TopLogprobs
    from ziphius.text.chat import Event

# Everything but tab and line feed: a model must not move the cursor or recolour the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_FORMS = ("json_schema", "regex", "choice", "grammar")


class AnswerOptions(SamplingConfig):
    """Options of every command that lets a model write: how it draws, and what is around it."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.6
    """Divides the logits; 0 always takes the most likely token."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1)] | None, tyro.conf.arg(metavar="INT")] = (
        None
    )
    """Maximum number of tokens to generate; by default 1,024 (chat: 4,096), or fewer if no more
    fit."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this text; may be given several times."""
    ignore_eos: bool = False
    """Go on after the model's own ends, up to --max-new-tokens."""
    chat_format: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Write the conversation in this format instead of the model's own."""
    thinking: bool = False
    """Let the model reason first, where it does so only on request (V3.1, V3.2)."""
    thinking_token_budget: Annotated[
        Annotated[int, Field(ge=0)] | None, tyro.conf.arg(metavar="INT")
    ] = None
    """End the thinking after this many tokens; by default the model does."""
    json_schema: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Answer with JSON that this schema allows; thinking stays free."""
    regex: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None
    """Answer with a text that this regular expression matches."""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Answer with one of these texts: give each by an option of its own."""
    grammar: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Answer with a text of this grammar: EBNF as Lark writes it."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in _FORMS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)}: an answer has one form, give one of them")
        if given and self.ignore_eos:
            raise ConfigError(f"{given[0]} ends the answer, and ignore_eos does not let it end")
        return self

    def params(self, max_tokens: int, **others: Any) -> SamplingParams:
        """Return what is asked for with a prompt.

        Args:
            max_tokens: of its answer.
            others: fields of `SamplingParams` that are no options here.
        """
        fields = {*SamplingConfig.model_fields, "stop", "ignore_eos", "thinking_token_budget"}
        return SamplingParams(
            **self.model_dump(include=fields),
            max_tokens=max_tokens,
            structured_outputs=self._structured_outputs(),
            **others,
        )

    def _structured_outputs(self) -> StructuredOutputs | None:
        if self.json_schema is not None:
            return StructuredOutputs(json_schema=_text_of(self.json_schema))
        if self.grammar is not None:
            return StructuredOutputs(grammar=_text_of(self.grammar))
        if self.regex is not None:
            return StructuredOutputs(regex=self.regex)
        return StructuredOutputs(choice=self.choice) if self.choice else None


def _text_of(path: Path) -> str:
    """Read a file of text."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error


@dataclass
class Answer:
    """One answer, as far as it has come."""

    events: "list[Event]" = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: "list[TopLogprobs]" = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None
    error: str | None = None

    def add(self, new: "AnswerPiece") -> None:
        """Take one more piece in."""
        self.events += new.events
        self.finish_reason, self.error = new.piece.finish_reason, new.piece.error
        output = new.piece.output
        if output is None:
            return
        self.stop_reason = output.stop_reason
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            self.logprobs.append(output.logprob)
        if output.top is not None:
            self.top.append(output.top)

    @property
    def mean_logprob(self) -> float:
        """Return that of its tokens; what went wrong is the least likely."""
        if self.error is not None or not self.logprobs:
            return -math.inf
        return sum(self.logprobs) / len(self.logprobs)

    def document(self, *, tokens: bool) -> dict[str, Any]:
        """Return it in JSON's types, with its tokens and their log-probabilities if wanted."""
        from ziphius.text.chat import message_of

        message = message_of(self.events)
        return {
            "text": message.content,
            "reasoning": message.reasoning_content,
            "tool_calls": [
                {"name": call.name, "arguments": call.arguments, "complete": call.complete}
                for call in message.tool_calls
            ],
            **({"token_ids": self.token_ids, "logprobs": self.logprobs} if tokens else {}),
            **({"top_logprobs": [told(top) for top in self.top]} if self.top else {}),
            "finish_reason": self.finish_reason,
            **({"stop_reason": self.stop_reason} if self.stop_reason else {}),
            **({"error": self.error} if self.error else {}),
        }


def told(top: "TopLogprobs") -> list[list[float]]:
    """Write the most likely tokens at a place as pairs, best first."""
    return [[token, logprob] for token, logprob in zip(top.ids, top.logprobs, strict=True)]


class AnswerPrinter:
    """Show the events of one answer: reasoning dim under a heading, calls dim, the answer plain."""

    def __init__(self, answer: Console, aside: Console) -> None:
        """Print the answer itself to one console, and what is no part of it to another."""
        self._answer = answer
        self._aside = aside
        self._part: Literal["thinking", "calls", "answer", None] = None

    def show(self, events: "Sequence[Event]") -> None:
        """Print what is new."""
        from ziphius.text.chat import ContentText, ReasoningText, ToolCallArguments, ToolCallStart

        for event in events:
            match event:
                case ReasoningText(text):
                    self._begin("thinking")
                    print_text(self._aside, text, "dim")
                case ContentText(text):
                    self._begin("answer")
                    print_text(self._answer, text)
                case ToolCallStart(_, name):
                    self._begin("calls", anew=True)
                    print_text(self._aside, f"{name} ", "dim")
                case ToolCallArguments(_, text):
                    print_text(self._aside, text, "dim")

    def end(self) -> None:
        """Finish the last line, if there is one."""
        if self._part is not None:
            (self._answer if self._part == "answer" else self._aside).print()

    def _begin(self, part: Literal["thinking", "calls", "answer"], *, anew: bool = False) -> None:
        """Go over to another part, or to a new one of the same kind."""
        if part == self._part and not anew:
            return
        self.end()
        if part != "answer":
            self._aside.print(part, style="dim italic")
        elif self._part is not None:
            self._aside.print()
        self._part = part


class Speed:
    """Measure one batch of answers: the prompt until the first token, then tokens per second.

    Args:
        prompt_tokens: of all prompts.
        cached: returns how many tokens of prompts were found in a cache, since it was made.
    """

    def __init__(self, prompt_tokens: int, cached: Callable[[], int] | None = None) -> None:
        self.prompt_tokens = prompt_tokens
        self._cached = cached or (lambda: 0)
        self._cached_before = self._cached()
        self.new_tokens = 0
        self.prompt_s = 0.0
        self.decode_s = 0.0
        self._first_step_tokens = 0
        self._start = time.perf_counter()

    def step(self, tokens: int) -> None:
        """Count the tokens of one step."""
        elapsed = time.perf_counter() - self._start
        if self.new_tokens == 0:
            self._first_step_tokens, self.prompt_s = tokens, elapsed
        self.new_tokens += tokens
        self.decode_s = elapsed - self.prompt_s

    @property
    def tokens_per_s(self) -> float | None:
        """Return the rate after the first step, None before a second one."""
        decoded = self.new_tokens - self._first_step_tokens
        return decoded / self.decode_s if decoded else None

    def line(self) -> str:
        """Sum up in one line."""
        rate = "" if self.tokens_per_s is None else f", {self.tokens_per_s:,.1f} tokens/s"
        found = self._cached() - self._cached_before
        return (
            f"prompt {self.prompt_tokens:,} tokens{f' ({found:,} cached)' if found else ''}, "
            f"{self.prompt_s:.2f} s to the first token; "
            f"{self.new_tokens:,} tokens in {self.prompt_s + self.decode_s:.2f} s{rate}"
        )


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a piece of a model's text as it is, but to a terminal without control codes."""
    if console.is_terminal:
        text = _CONTROL.sub("\ufffd", text)
    if console.is_terminal and style:
        console.print(Text(text, style=style), end="", soft_wrap=True)
    else:
        console.file.write(text)  # not through rich, which turns tabs into spaces
    console.file.flush()


def token_limit(options: AnswerOptions, default: int, loaded: "Loaded", prompt: "Prompt") -> int:
    """Return how many tokens an answer may have: as asked, or `default` but no more than fit."""
    from ziphius.engine.answer import room_left

    return options.max_new_tokens or min(default, room_left(loaded, prompt))
