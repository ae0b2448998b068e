"""Prompts: token ids to go on from, out of texts and conversations; and how answers are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.engine.load import Loaded
from ziphius.engine.processors.thinking import Thinking
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
