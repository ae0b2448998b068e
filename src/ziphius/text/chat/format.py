"""`ChatFormat`: what callers may ask of a chat format, and how pieces become ids.

A conversation becomes segments of pieces. A piece is text, or a `SpecialToken`. These come from the
format alone and become ids by name; text, whoever wrote it, is encoded as text, so nothing in it
can turn into a special token.

Two kinds exist: formats written by hand (`written.py`), and the templates that checkpoints bring
(`template.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.chat.parser import StreamParser, message_of
from ziphius.text.special import SpecialToken

Pieces = list[str]
"""Text and special tokens, in order."""


class Vocabulary(Protocol):
    """What a format asks of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text."""

    @property
    def add_bos(self) -> bool:
        """Whether a raw text begins with it."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text."""

    @property
    def special_tokens(self) -> "Mapping[str, int]":
        """What text can never become, with its ids."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of text."""

    def has_token(self, text: str) -> bool:
        """Say whether an added token is spelled so."""

    def token_id(self, text: str) -> int:
        """Return the id of an added token, or raise."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive pieces that all belong to a prompt, or all to what an assistant writes."""

    pieces: Pieces
    completion: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered conversation as ids."""

    ids: list[int]
    written: list[bool] | ChatError
    """The mask, or why there is none."""
    thinking: bool
    """The prompt ends inside a think block: what `ChatFormat.parser` has to know."""

    @property
    def loss_mask(self) -> list[bool]:
        """True for the tokens that assistants write, their end tokens included.

        Raises:
            ChatError: the checkpoint's template does not let it be told.
        """
        if isinstance(self.written, ChatError):
            raise self.written
        return self.written


class ChatFormat(ABC):
    """One way to write a conversation for a model, and to read its answer."""

    name: str
    thinking_modes: tuple[bool, ...] = (False,)
    """Values of `thinking` that the format knows, its default first."""
    opens_own_thinking: bool = False
    """The model may write the token that opens a think block itself."""
    direct: str | None = None
    """Name of the format for models that never think, where the prompt of this one opens a think
    block unless it is told not to."""
    keeps_reasoning: bool = False
    """Reasoning stays since the last user message, not of the last message alone."""
    roles: tuple[str, ...] = ("system", "user", "assistant")
    """Who can speak; a template decides for itself, and gets no developer."""

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        generation_prompt: bool = False,
        reply_schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as text, to be read; `encode` is what models are given.

        Args:
            messages: the conversation, oldest first.
            tools: what the model may call.
            thinking: let the model reason first; None takes the format's default, or True if the
                last message has reasoning.
            generation_prompt: end where the assistant's next turn begins.
            reply_schema: JSON schema the answer must fit; {} for any JSON object.
        """

    @abstractmethod
    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Vocabulary,
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        generation_prompt: bool = False,
        reply_schema: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Write a conversation as ids; the arguments are those of `render`."""

    @abstractmethod
    def stop_ids(self, tokenizer: Vocabulary) -> tuple[int, ...]:
        """Return the ids that end a generation: the tokenizer's, and this format's own end."""

    @abstractmethod
    def parser(self, *, thinking: bool = False) -> StreamParser:
        """Return a parser of one answer.

        Args:
            thinking: the prompt ended inside a think block (`Encoded.thinking`).
        """

    def parse(self, text: str, *, thinking: bool = False) -> Message:
        """Read one whole answer; calls that cannot be run are marked as not complete."""
        parser = self.parser(thinking=thinking)
        return message_of(parser.push(text) + parser.finish())

    def render_fim(self, prefix: str, suffix: str) -> str:
        """Write a hole in code to be filled in, prefix first (PSM); the model writes the middle."""
        return "".join(self._fim_pieces(prefix, suffix))

    def encode_fim(self, prefix: str, suffix: str, tokenizer: Vocabulary) -> list[int]:
        """Write a hole in code as ids, without the token that begins a text."""
        return piece_ids(self._fim_pieces(prefix, suffix), tokenizer)

    def _fim_pieces(self, prefix: str, suffix: str) -> Pieces:
        raise ChatError(f"Chat format {self.name} cannot fill in the middle.")


def fim_pieces(prefix: str, suffix: str) -> Pieces:
    """Write a hole in code as the DeepSeek family does."""
    return [special.FIM_BEGIN, str(prefix), special.FIM_HOLE, str(suffix), special.FIM_END]


def piece_ids(
    pieces: Pieces,
    tokenizer: Vocabulary,
    spelled: frozenset[SpecialToken] = frozenset(),
    known: Mapping[str, int] | None = None,
) -> list[int]:
    """Encode special tokens by name and everything else as text.

    Args:
        pieces: text and special tokens.
        tokenizer: of the model.
        spelled: those that are written as text where the vocabulary has no such token.
        known: ids of those that the vocabulary has under other names.
    """
    known = known or {}
    ids: list[int] = []
    text = ""
    for piece in pieces:
        is_token = isinstance(piece, SpecialToken) and (
            piece not in spelled or tokenizer.has_token(piece)
        )
        if is_token:
            own = known[piece] if piece in known else tokenizer.token_id(piece)
            ids += [*tokenizer.encode(text), own]
            text = ""
        else:
            text += piece
    return ids + tokenizer.encode(text)


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours of one kind, so that text is cut by the vocabulary and not by our methods.

    The border between a prompt and a completion stays: a model generates from exactly there.
    """
    found: list[Segment] = []
    for segment in segments:
        if found and found[-1].completion == segment.completion:
            found[-1] = Segment([*found[-1].pieces, *segment.pieces], segment.completion)
        else:
            found.append(segment)
    return found
