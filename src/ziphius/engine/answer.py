"""From a prompt to the events of its answer: chat format in, reasoning, content and calls out."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.engine.engine import Engine
from ziphius.engine.generate import NewToken
from ziphius.engine.load import Loaded
from ziphius.engine.processors.thinking import Thinking
from ziphius.engine.sequence import FinishReason, Request
from ziphius.engine.text import StopStrings, stream_text
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.text.chat import ChatFormat, ContentText, Event, Message
from ziphius.text.special import END_THINK, THINK
from ziphius.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from, and how to read what comes."""

    ids: Sequence[int]
    stop_ids: tuple[int, ...]
    chat_format: ChatFormat | None
    """None: a raw completion, all of it content."""
    thinking: bool = False
    """The ids end inside a think block."""

    def read(self) -> "Reader":
        """Return a new reader of one answer."""
        return Reader(self)


class Reader:
    """Turn the text of one answer into events; without a chat format all text is content."""

    def __init__(self, prompt: Prompt) -> None:
        chat_format = prompt.chat_format
        self._parser = chat_format.parser(thinking=prompt.thinking) if chat_format else None

    def push(self, text: str) -> list[Event]:
        """Take more text."""
        if self._parser is not None:
            return self._parser.push(text)
        return [ContentText(text)] if text else []

    def finish(self) -> list[Event]:
        """End the answer."""
        return self._parser.finish() if self._parser is not None else []


@dataclass(frozen=True)
class AnswerPiece:
    """One token of one answer, and what it tells."""

    row: int
    token: NewToken
    events: list[Event]
    finish_reason: FinishReason | None


def raw_prompt(text: str, tokenizer: Tokenizer) -> Prompt:
    """Let the model continue a text, behind the token that begins one where the model has it."""
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return Prompt([*bos, *tokenizer.encode(text)], tokenizer.eos_ids, None)


def chat_prompt(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    *,
    thinking: bool | None = None,
) -> Prompt:
    """Let the model give the next answer of a conversation; `thinking` None is the format's own."""
    encoded = chat_format.encode(messages, tokenizer, thinking=thinking, generation_prompt=True)
    stop_ids = chat_format.stop_ids(tokenizer)
    return Prompt(encoded.ids, stop_ids, chat_format, encoded.thinking)


def thinking_of(prompt: Prompt, tokenizer: Tokenizer) -> Thinking | None:
    """Return how the answer to a prompt thinks; None where it has no think block to come."""
    chat_format = prompt.chat_format
    if chat_format is None or not (prompt.thinking or chat_format.opens_own_thinking):
        return None
    start_ids, end_ids = (
        (tokenizer.token_id(tag),) if tokenizer.has_token(tag) else tuple(tokenizer.encode(tag))
        for tag in (THINK, END_THINK)
    )
    opens = start_ids if chat_format.opens_own_thinking else ()
    return Thinking(end_ids, opens, is_open=prompt.thinking)


def room_left(loaded: Loaded, prompt: Prompt) -> int:
    """Return how many tokens fit behind a prompt; an error if none does."""
    context = loaded.model.config.max_position_embeddings
    if len(prompt.ids) >= context:
        raise ConfigError(
            f"the prompt has {len(prompt.ids):,} tokens and fills the model's context of "
            f"{context:,}: nothing can follow. Shorten it."
        )
    return context - len(prompt.ids)


def stream_answers(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: Sequence[int],
    sequence_ids: Sequence[int],
    sampling: SamplingConfig,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
) -> Generator[list[AnswerPiece], None, None]:
    """Answer all prompts, and yield each step's tokens with the events they make.

    Args:
        engine: of the model.
        tokenizer: of the model.
        prompts: one per answer.
        max_new_tokens: of each answer.
        sequence_ids: of each answer; see `Request.sequence_id`.
        sampling: of all answers.
        stop: strings that end an answer and are not shown.
        ignore_eos: go on after the model's own ends.
    """
    requests = [
        Request(prompt.ids, most, sequence_id, sampling, () if ignore_eos else prompt.stop_ids)
        for prompt, most, sequence_id in zip(prompts, max_new_tokens, sequence_ids, strict=True)
    ]
    stops = [StopStrings(stop) for _ in prompts]
    readers = [prompt.read() for prompt in prompts]
    with closing(stream_text(engine, tokenizer, requests, stops)) as steps:
        for step in steps:
            pieces = []
            for piece in step:
                events = readers[piece.row].push(piece.text)
                if piece.finish_reason is not None:
                    events += readers[piece.row].finish()
                pieces.append(AnswerPiece(piece.row, piece.token, events, piece.finish_reason))
            yield pieces
