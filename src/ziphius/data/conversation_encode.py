"""One conversation becomes samples: ids, and which of them are learned; many of them in chunks.

Read without torch, as the processes that encode are. What is too long for a row, or has no answer,
is counted and left out here; what a chat format cannot say is a problem with a name.

Shapes: T tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziphius.core.errors import ChatError, TokenizerError
from ziphius.data.config import OverLong
from ziphius.data.conversation_config import EarlierTurns, ThinkBlocks
from ziphius.data.errors import DataError
from ziphius.data.messages import Conversation
from ziphius.data.row_report import RowReport
from ziphius.data.turns import Sample, fitted, text_sample, turn_samples
from ziphius.text.chat import ChatFormat, get_chat_format
from ziphius.text.tokenizer import Tokenizer

CHUNK_CONVERSATIONS = 512
Chunk = list[tuple[str, Conversation]]
"""Conversations, each with the name of its split."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """One conversation, or the part of it up to a turn, as ids, and which of them are learned."""

    ids_T: NDArray[np.integer[Any]]
    loss_mask_T: NDArray[np.bool_]
    bytes_count: int
    """UTF-8 bytes of the tokens that are learned, special tokens left out."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How conversations become samples."""

    seq_len: int
    """Tokens of a row."""
    over_long: OverLong = "skip"
    """What no row holds is left out, cut at the end of the row, or an error."""
    thinking: bool | None = None
    """Whether an answer begins inside a think block; None goes by each turn."""
    earlier_turns: EarlierTurns = "expand"
    """Whether turns that a whole conversation cannot teach get samples of their own
    (`data/turns.py`)."""
    think_blocks: ThinkBlocks = "parse"
    """Whether a think block in a content is the reasoning (`data/think_blocks.py`)."""


@dataclass(slots=True)
class Encoded:
    """What became of one conversation."""

    kept: list[EncodedConversation] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of all samples, before any cut."""
    unanswered: int = 0
    """Samples left out because nothing an assistant wrote is in them, or was cut off."""
    changes: Counter[str] = field(default_factory=Counter)
    problem: str | None = None
    """Why the format cannot say it."""


@dataclass
class Tally:
    """Sums over all conversations of what became of them."""

    kept: int = 0
    too_long: int = 0
    longest: int = 0
    unanswered: int = 0
    sources: int = 0
    """Conversations that the kept samples come from."""
    changes: Counter[str] = field(default_factory=Counter)

    def take(
        self, conversation: Conversation, encoded: Encoded, encoding: Encoding, report: RowReport
    ) -> list[EncodedConversation]:
        """Count one conversation and return what is kept of it.

        Raises:
            DataError: naming file and line: it is too long, or cannot be said, where that is an
                error.
        """
        if encoded.problem is not None:
            report.refuse(DataError(f"{conversation.where}: {encoded.problem}"))
            return []
        longest = max(encoded.lengths, default=0)
        if longest > encoding.seq_len and encoding.over_long == "refuse":
            raise DataError(
                f"{conversation.where}: {longest} tokens, and a row has {encoding.seq_len}. Give "
                "a longer seq_len, or let such conversations be skipped or cut."
            )
        self.longest = max(self.longest, longest)
        self.too_long += sum(length > encoding.seq_len for length in encoded.lengths)
        self.unanswered += encoded.unanswered
        self.kept += len(encoded.kept)
        self.sources += bool(encoded.kept)
        self.changes += encoded.changes
        return encoded.kept


def encode_chunk(tokenizer: Tokenizer, chunk: Chunk, encoding: Encoding) -> list[Encoded]:
    """Encode some conversations in the tokenizer's own format."""
    assert tokenizer.chat_format is not None
    spoken = get_chat_format(tokenizer.chat_format)
    return [encode_one(one, tokenizer, spoken, encoding) for _, one in chunk]


def encode_one(
    conversation: Conversation, tokenizer: Tokenizer, chat_format: ChatFormat, encoding: Encoding
) -> Encoded:
    """Encode one conversation."""
    encoded = Encoded()
    try:
        samples = _samples(conversation, tokenizer, chat_format, encoding, encoded.changes)
    except (ChatError, TokenizerError) as error:
        return Encoded(problem=str(error))
    for ids, mask in samples:
        encoded.lengths.append(len(ids))
        if len(ids) > encoding.seq_len and encoding.over_long != "cut":
            continue
        ids, mask = ids[: encoding.seq_len], mask[: encoding.seq_len]
        if any(mask[1:]):  # the first token has nothing to be predicted from
            encoded.kept.append(_encoded(ids, mask, tokenizer))
        else:
            encoded.unanswered += 1
    encoded.unanswered += not samples
    return encoded


def conversation_chunks(conversations: Iterable[tuple[str, Conversation]]) -> Iterator[Chunk]:
    """Group conversations so that handing them to a process costs little beside encoding them."""
    stream = iter(conversations)
    while chunk := list(islice(stream, CHUNK_CONVERSATIONS)):
        yield chunk


def _encoded(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> EncodedConversation:
    learned = [token for token, in_loss in zip(ids, mask, strict=True) if in_loss]
    size = len(tokenizer.decode(learned, skip_special=True).encode())
    return EncodedConversation(np.array(ids, np.int32), np.array(mask), size)


def _samples(
    conversation: Conversation,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    encoding: Encoding,
    changes: Counter[str],
) -> list[Sample]:
    if conversation.text is not None:
        return [text_sample(conversation.text, tokenizer)]
    messages = fitted(
        conversation.messages,
        chat_format,
        tokenizer,
        reads_blocks=encoding.think_blocks == "parse",
        changes=changes,
    )
    return turn_samples(
        messages,
        conversation.tools,
        tokenizer,
        chat_format,
        masked_turns=conversation.masked_turns,
        thinking=encoding.thinking,
        earlier_turns=encoding.earlier_turns,
        changes=changes,
    )
