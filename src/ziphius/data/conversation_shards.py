"""Conversations on disk as tokens, made once (`data/cache.py`) and mapped at every later start.

    train-00000.bin ...            ids, conversation after conversation, as in `data/shards.py`
    train-loss_mask-00000.bin ...  a byte for each of them: learned or not
    train-bytes.npy                int64, UTF-8 bytes of what is learned of each conversation
    validation-...                 the same for the conversations that are measured on
    conversations.json             what was counted, skipped and said on the way, and what all of
                                   it depends on

Rows are read, encoded by several processes where there are many, and written as they come: memory
holds a few chunks of them, and a few numbers for each.
"""

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from ziphius.core.errors import ConfigError
from ziphius.data.cache import file_stats, made_once, tokenizer_digest
from ziphius.data.config import HUB
from ziphius.data.conversation_config import ConversationSources
from ziphius.data.conversation_encode import (
    EncodedConversation,
    Encoding,
    Tally,
    conversation_chunks,
    encode_chunk,
)
from ziphius.data.conversations import Conversations, Summing, Totals, tallied
from ziphius.data.document import fraction
from ziphius.data.encode import EncodingPool, id_type
from ziphius.data.messages import Conversation, is_held_out, read_conversations, words_of
from ziphius.data.row_files import conversation_files
from ziphius.data.row_report import RowReport
from ziphius.data.shards import SPLITS, ShardWriter, Split, explained, open_split, told_if_damaged
from ziphius.data.writing import MEGABYTE, tokenizing_progress
from ziphius.text.chat import CHAT_FORMATS, get_chat_format
from ziphius.text.special import THINK
from ziphius.text.tokenizer import Tokenizer

FORMAT = 2
"""Raised when the same conversations would become other shards; old ones are then not used."""
DESCRIPTION = "conversations.json"
MASK = "-loss_mask"


@dataclass(frozen=True)
class PreparedConversations:
    """What is learned and what is measured on, mapped from disk."""

    learned: Conversations
    held_out: Conversations
    tokenizer: Tokenizer
    """In the format that is taught."""
    report: RowReport
    """What became of the rows."""
    notes: tuple[str, ...]
    """What was chosen on the way, for people."""


class MappedConversations(Sequence[EncodedConversation]):
    """The conversations of one split, read when they are asked for."""

    def __init__(self, ids: Split, mask: Split, bytes_N: NDArray[np.int64]) -> None:
        self._ids, self._mask, self._bytes_N = ids, mask, bytes_N

    def __len__(self) -> int:
        return self._ids.counts.documents

    @overload
    def __getitem__(self, index: int) -> EncodedConversation: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EncodedConversation]: ...

    def __getitem__(
        self, index: int | slice
    ) -> EncodedConversation | Sequence[EncodedConversation]:
        """Return views of one conversation, or those of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        length = int(self._ids.lengths_N[index])
        return EncodedConversation(
            self._ids.tokens(index, 0, length),
            cast(NDArray[np.bool_], self._mask.tokens(index, 0, length)),
            int(self._bytes_N[index]),
        )


def prepare_conversations(
    sources: ConversationSources,
    encoding: Encoding,
    tokenizer: Tokenizer,
    *,
    chat_format: str | None,
    say: Callable[[str], None] | None = None,
) -> PreparedConversations:
    """Encode conversations, or find it done.

    Args:
        sources: which conversations.
        encoding: how they become samples.
        tokenizer: of the model.
        chat_format: that is taught; None for the tokenizer's own, or where no answer reasons one
            whose prompts open no think block.
        say: is told of each row that cannot be used, at every start.

    Raises:
        ConfigError: there is no chat format.
        DataError: a file cannot be read, or too many of its rows cannot be used.
    """
    name = chat_format or tokenizer.chat_format
    if name is None:
        raise ConfigError(
            f"The model names no chat format: give chat_format, one of {', '.join(CHAT_FORMATS)}."
        )
    # A prompt that opens a think block would meet a model that never closed one.
    direct = get_chat_format(name).direct
    if chat_format is not None or encoding.thinking is not None:
        direct = None
    made_of = _made_of(sources, encoding, tokenizer, [name, direct])
    report = RowReport(strict=sources.strict, max_bad_share=sources.max_bad_share, say=say)

    def make(folder: Path) -> None:
        survey = _survey(sources) if direct or sources.most is not None else _Survey()
        spoken = name if direct is None or survey.reasons else direct
        taught = tokenizer.with_chat_format(spoken)
        splits = _write(folder, sources, survey, encoding, taught, report)
        report.check()
        notes = survey.notes(sources.most)
        document = {"chat_format": spoken, "splits": splits, "report": report.document()}
        with explained(folder):
            (folder / DESCRIPTION).write_text(
                json.dumps(document | {"notes": notes, "made_of": made_of}, indent=1)
            )

    folder = made_once("conversations", made_of, make)
    with told_if_damaged(folder):
        document = json.loads((folder / DESCRIPTION).read_text())
        learned, held_out = (
            _opened(folder, split, document["splits"][split], encoding.seq_len) for split in SPLITS
        )
        if not report.read:  # this start has not read the rows
            report.recall(document["report"])
        taught = tokenizer.with_chat_format(document["chat_format"])
        notes = tuple(document["notes"])
        return PreparedConversations(learned, held_out, taught, report, notes)


def _made_of(
    sources: ConversationSources,
    encoding: Encoding,
    tokenizer: Tokenizer,
    formats: list[str | None],
) -> dict[str, Any]:
    """Write down all that the shards depend on; of the hub, the name alone."""
    named = [*sources.data, *([] if sources.validation is None else [sources.validation])]
    local = [path for path in named if not str(path).startswith(HUB)]
    files = [file for path in local for file in conversation_files(path) if file.exists()]
    settings = asdict(sources) | {
        "data": list(map(str, sources.data)),
        "validation": None if sources.validation is None else str(sources.validation),
    }
    return {
        "format": FORMAT,
        "sources": settings,
        "files": file_stats(files),
        "encoding": asdict(encoding),
        "formats": formats,
        "tokenizer": tokenizer_digest(tokenizer),
    }


@dataclass(frozen=True)
class _Survey:
    """What a first look at all conversations finds."""

    reasons: bool = False
    """Some answer has reasoning."""
    total: int = 0
    """Conversations that could be learned."""
    below: float = 1.0
    """Those are learned whose place in the sample is below this."""

    def has(self, number: int, conversation: Conversation) -> bool:
        """Tell whether a conversation is in the sample."""
        return self.below >= 1.0 or _place(number, conversation) < self.below

    def notes(self, most: int | None) -> list[str]:
        if most is None or self.total <= most:
            return []
        return [
            f"Of {self.total:,} conversations {most:,} are learned, a random sample "
            f"(max_conversations = {most})."
        ]


def _place(number: int, conversation: Conversation) -> float:
    return fraction("sample", number, words_of(conversation))


def _survey(sources: ConversationSources) -> _Survey:
    """Look at all conversations; what cannot be read is told of when it is encoded."""
    unheard = RowReport(strict=False, max_bad_share=1.0, say=None)
    places, reasons = array("d"), False
    for split, conversation in _conversations(sources, _Survey(), unheard):
        reasons = reasons or _reasons(conversation)
        if split == "train" and sources.most is not None:
            places.append(_place(len(places), conversation))
        elif reasons and sources.most is None:
            break
    if sources.most is None or len(places) <= sources.most:
        return _Survey(reasons, len(places))
    return _Survey(reasons, len(places), float(np.sort(np.asarray(places))[sources.most]))


def _reasons(conversation: Conversation) -> bool:
    return any(
        message.role == "assistant" and (message.reasoning_content or THINK in message.content)
        for message in conversation.messages
    )


def _conversations(
    sources: ConversationSources, survey: _Survey, report: RowReport
) -> Iterator[tuple[str, Conversation]]:
    """Read all conversations, each with the name of its split."""
    share = sources.hold_out if sources.validation is None else 0.0
    train, validation = SPLITS
    number = 0
    for path in sources.data:
        for conversation in read_conversations(path, report):
            if is_held_out(conversation, share):
                yield validation, conversation
                continue
            if survey.has(number, conversation):
                yield train, conversation
            number += 1
    if sources.validation is not None:
        for conversation in read_conversations(sources.validation, report):
            yield validation, conversation


class _Writer:
    """Writes the conversations of one split, and counts what became of all that were read."""

    def __init__(self, folder: Path, split: str, encoding: Encoding, tokenizer: Tokenizer) -> None:
        self.tally, self._summing = Tally(), Summing(encoding.seq_len)
        self._dtype = id_type(tokenizer.vocab_size)
        self._ids, self._mask = ShardWriter(folder, split), ShardWriter(folder, split + MASK)
        self._bytes: list[int] = []
        self._path = _bytes_path(folder, split)

    def append(self, entry: EncodedConversation) -> None:
        self._ids.append(entry.ids_T.astype(self._dtype), entry.bytes_count)
        self._mask.append(entry.loss_mask_T.view(np.uint8), 0)
        self._bytes.append(entry.bytes_count)
        self._summing.add(entry)

    def finish(self) -> dict[str, Any]:
        """Write what is still in memory, and return the description."""
        self._ids.finish()
        self._mask.finish()
        with explained(self._path.parent):
            np.save(self._path, np.array(self._bytes, dtype=np.int64))
        totals = self._summing.result()
        return {
            "dtype": np.dtype(self._dtype).name,
            "ids": asdict(self._ids.counts),
            "mask": asdict(self._mask.counts),
            "loss_tokens": totals.loss_tokens,
            "fingerprint": totals.fingerprint,
            "tally": vars(self.tally) | {"changes": dict(self.tally.changes)},
        }

    def close(self) -> None:
        self._ids.close()
        self._mask.close()


def _write(
    folder: Path,
    sources: ConversationSources,
    survey: _Survey,
    encoding: Encoding,
    tokenizer: Tokenizer,
    report: RowReport,
) -> dict[str, Any]:
    """Encode and write all conversations; return the descriptions of the splits."""
    writers = {split: _Writer(folder, split, encoding, tokenizer) for split in SPLITS}
    chunks = conversation_chunks(_conversations(sources, survey, report))
    work = partial(encode_chunk, encoding=encoding)
    try:
        with EncodingPool(tokenizer, os.cpu_count() or 1) as pool, tokenizing_progress() as shown:
            task = shown.add_task("Tokenizing conversations", total=None)
            for chunk, encoded in pool.map(work, chunks):
                for (split, conversation), one in zip(chunk, encoded, strict=True):
                    for entry in writers[split].tally.take(conversation, one, encoding, report):
                        writers[split].append(entry)
                        shown.update(task, advance=entry.bytes_count / MEGABYTE)
        return {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def _opened(folder: Path, split: str, document: Mapping[str, Any], seq_len: int) -> Conversations:
    """Map one split."""
    ids = open_split(folder, split, document["ids"], np.dtype(document["dtype"]))
    mask = open_split(folder, split + MASK, document["mask"], np.dtype(np.bool_))
    bytes_N = np.load(_bytes_path(folder, split), allow_pickle=False)
    tally = Tally(**document["tally"] | {"changes": Counter(document["tally"]["changes"])})
    kept = MappedConversations(ids, mask, bytes_N)
    totals = Totals(ids.lengths_N, document["loss_tokens"], document["fingerprint"])
    return tallied(tally, kept, seq_len, totals)


def _bytes_path(folder: Path, split: str) -> Path:
    return folder / f"{split}-bytes.npy"
