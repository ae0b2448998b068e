"""Conversations become rows: packed whole, learned in part.

A row holds as many whole conversations as fit; its tail is padding, document -1, that nothing
learns from. Rows of several epochs follow each other, each epoch in another order; after the last
one rows are empty, so that the last step of a run need not be cut. The conversations are in memory,
or on disk and mapped (`data/conversation_shards.py`).

Shapes: N conversations, B rows, T tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.data.conversation_encode import EncodedConversation, Encoding, Tally, encode_one
from ziphius.data.errors import DataError
from ziphius.data.loader import Rows, fixed_rows
from ziphius.data.messages import Conversation
from ziphius.data.packing import permutation
from ziphius.data.row_report import RowReport
from ziphius.text.chat import ChatFormat
from ziphius.text.tokenizer import Tokenizer

DOMAIN = "conversations"
OPEN_ROWS = 64
"""Rows that may still be filled while packing; more would fit little better and cost time."""
_STREAM = 0x5F7
"""Keeps these permutations apart from those of running text."""


class Summing:
    """Takes in conversations one after another and knows what they are together."""

    def __init__(self, seq_len: int) -> None:
        self._digest = hashlib.sha256(str(seq_len).encode())
        self._lengths: list[int] = []
        self._learned = 0

    def add(self, entry: EncodedConversation) -> None:
        """Take in one."""
        self._lengths.append(len(entry.ids_T))
        self._learned += int(entry.loss_mask_T.sum())
        self._digest.update(len(entry.ids_T).to_bytes(8, "little"))
        self._digest.update(entry.ids_T.astype(np.int64).tobytes() + entry.loss_mask_T.tobytes())

    def result(self) -> "Totals":
        """Return what all are together so far."""
        lengths_N = np.array(self._lengths, dtype=np.int64)
        return Totals(lengths_N, self._learned, self._digest.hexdigest()[:20])


@dataclass(frozen=True)
class Totals:
    """What conversations are together."""

    lengths_N: NDArray[np.int64]
    """Tokens of each."""
    loss_tokens: int
    """Tokens that assistants wrote."""
    fingerprint: str
    """Names all ids, what is learned of them, and the context."""


@dataclass(frozen=True)
class Conversations:
    """What a model learns from, and what was left out on the way."""

    kept: Sequence[EncodedConversation]
    seq_len: int
    too_long: int = 0
    """Samples longer than a row: left out, or cut."""
    longest: int = 0
    """Tokens of the longest sample, before any cut."""
    unanswered: int = 0
    """Samples left out because nothing an assistant wrote is in them, or was cut off."""
    sources: int = 0
    """Conversations that the kept samples come from: one may become several (`data/turns.py`)."""
    changes: Mapping[str, int] = field(default_factory=dict)
    """What was read in another way than it was written: words for it -> how often."""
    known: Totals | None = field(default=None, compare=False)
    """What all are together, where that was found out before."""

    @cached_property
    def totals(self) -> Totals:
        """Say what all are together."""
        if self.known is not None:
            return self.known
        summing = Summing(self.seq_len)
        for entry in self.kept:
            summing.add(entry)
        return summing.result()

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Count the tokens of each."""
        return self.totals.lengths_N

    @property
    def tokens(self) -> int:
        """Count all tokens."""
        return int(self.lengths_N.sum())

    @property
    def loss_tokens(self) -> int:
        """Count the tokens that assistants wrote."""
        return self.totals.loss_tokens

    @property
    def fingerprint(self) -> str:
        """Name all ids and what is learned of them."""
        return self.totals.fingerprint


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    encoding: Encoding,
    report: RowReport | None = None,
) -> Conversations:
    """Turn a few conversations into ids, in memory.

    Args:
        conversations: to learn from.
        tokenizer: of the model.
        chat_format: how the model is spoken to.
        encoding: how they become samples.
        report: takes conversations that the format cannot say; without it one is an error.

    Raises:
        DataError: naming file and line: a conversation is too long, or cannot be said, where that
            is an error.
    """
    tally, report = Tally(), report or RowReport()
    kept = [
        entry
        for one in conversations
        for entry in tally.take(
            one, encode_one(one, tokenizer, chat_format, encoding), encoding, report
        )
    ]
    return tallied(tally, kept, encoding.seq_len)


def tallied(
    tally: Tally, kept: Sequence[EncodedConversation], seq_len: int, known: Totals | None = None
) -> Conversations:
    """Join what is kept with what was counted."""
    return Conversations(
        tuple(kept) if isinstance(kept, list) else kept,
        seq_len,
        tally.too_long,
        tally.longest,
        tally.unanswered,
        tally.sources,
        dict(tally.changes),
        known,
    )


class ConversationLoader:
    """Rows of packed conversations over several epochs; see `data.loader.Loader`.

    Args:
        conversations: what to learn from, at least one.
        seed: decides the order.
        epochs: how often each conversation is seen; None for without end.
        rows: the rows of each step, or their number.
        micro_batch_size: rows of a micro-batch.
    """

    def __init__(
        self,
        conversations: Conversations,
        *,
        seed: int,
        epochs: int | None,
        rows: Rows | int,
        micro_batch_size: int,
    ) -> None:
        if not conversations.kept:
            raise DataError(
                f"No conversation is left to learn from: {conversations.too_long} are longer than "
                f"a row of {conversations.seq_len} tokens (the longest has "
                f"{conversations.longest}), {conversations.unanswered} have no answer or lost it "
                "to the cut. Give a longer seq_len."
            )
        self.conversations, self.seed, self.epochs = conversations, seed, epochs
        self.micro_batch_size = micro_batch_size
        self.rows = fixed_rows(rows) if isinstance(rows, int) else rows
        self._packed = lru_cache(maxsize=2)(self._pack_epoch)
        self._starts = [0]
        self._growing = Lock()
        for _ in range(epochs or 1):
            self._grow()

    @property
    def total_rows(self) -> int | None:
        """Count the rows of all epochs; None if they have no end."""
        return None if self.epochs is None else self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Name the conversations and the order of the rows."""
        return f"{self.conversations.fingerprint} x {self.epochs} seed {self.seed}"

    @property
    def filled_share(self) -> float:
        """Return the share of all rows that is no padding; of the first epoch, without an end."""
        rows = self.total_rows or self._starts[1]
        return (self.epochs or 1) * self.conversations.tokens / (rows * self.conversations.seq_len)

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Return micro-batch `micro` of this rank's part of a step."""
        if not 0 <= micro < self.micros(step, world_size):
            raise IndexError(f"step {step} has no micro-batch {micro}")
        numbers = self.rows(step)
        first = (micro * world_size + rank) * self.micro_batch_size
        rows = [self._row(number) for number in numbers[first : first + self.micro_batch_size]]
        return pack_rows(self.conversations, rows)

    def micros(self, step: int, world_size: int) -> int:
        """Count the micro-batches of each rank in a step."""
        rows, share = len(self.rows(step)), self.micro_batch_size * world_size
        if rows == 0 or rows % share:
            raise ConfigError(
                f"Step {step} has {rows} rows, which {world_size} ranks cannot share in "
                f"micro-batches of {self.micro_batch_size} rows. Choose a multiple of {share}."
            )
        return rows // share

    def tokens_per_step(self, step: int) -> int:
        """Count the tokens of a step, padding included, over all ranks."""
        return len(self.rows(step)) * self.conversations.seq_len

    def _row(self, number: int) -> list[int]:
        """Return the conversations of a row, none after the last epoch."""
        if self.epochs is None:
            with self._growing:
                while number >= self._starts[-1]:
                    self._grow()
        elif number >= self._starts[-1]:
            return []
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._packed(epoch)[number - self._starts[epoch]]

    def _grow(self) -> None:
        """Count the rows of one more epoch."""
        rows = self._packed(len(self._starts) - 1)
        self._starts.append(self._starts[-1] + len(rows))

    def _pack_epoch(self, epoch: int) -> list[list[int]]:
        order = permutation(len(self.conversations.kept), self.seed, _STREAM, epoch)
        return pack(self.conversations, order.tolist())


def pack(conversations: Conversations, order: Sequence[int]) -> list[list[int]]:
    """Put each conversation into the first row that has room for it."""
    rows: list[list[int]] = []
    room: dict[int, int] = {}
    lengths = conversations.lengths_N.tolist()
    for index in order:
        length = lengths[index]
        found = next((row for row, left in room.items() if left >= length), None)
        if found is None:
            found = len(rows)
            rows.append([])
            room[found] = conversations.seq_len
        rows[found].append(index)
        room[found] -= length
        if len(room) > OPEN_ROWS:
            del room[min(room, key=lambda row: room[row])]
    return rows


def pack_rows(conversations: Conversations, rows: Sequence[Sequence[int]]) -> Batch:
    """Lay rows of conversations out as a batch."""
    shape = len(rows), conversations.seq_len
    ids_BT = np.zeros(shape, dtype=np.int64)
    documents_BT = np.full(shape, -1, dtype=np.int64)
    loss_mask_BT = np.zeros(shape, dtype=np.bool_)
    size = 0
    for row, members in enumerate(rows):
        start = 0
        for document, index in enumerate(members):
            entry = conversations.kept[index]
            place = slice(start, start + len(entry.ids_T))
            ids_BT[row, place] = entry.ids_T
            documents_BT[row, place] = document
            loss_mask_BT[row, place] = entry.loss_mask_T
            start, size = place.stop, size + entry.bytes_count
    return Batch(
        torch.from_numpy(ids_BT),
        torch.from_numpy(documents_BT),
        torch.from_numpy(loss_mask_BT),
        bytes_count=size,
        domains=(DOMAIN,) * len(rows),
    )


def fill_rows(conversations: Conversations, rows: int) -> Conversations:
    """Keep the conversations that fill so many rows, the first that come."""
    packed = pack(conversations, range(len(conversations.kept)))[:rows]
    kept = sorted(index for row in packed for index in row)
    return replace(
        conversations, kept=tuple(conversations.kept[index] for index in kept), known=None
    )


def validation_batches(conversations: Conversations, batch_size: int) -> Iterator[Batch]:
    """Yield every conversation once, in the order they came."""
    rows = pack(conversations, range(len(conversations.kept)))
    for first in range(0, len(rows), batch_size):
        yield pack_rows(conversations, rows[first : first + batch_size])
