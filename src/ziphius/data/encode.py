"""Documents become ids, in this process or in several.

The processes are spawned, not forked (a fork of a process with threads can hang), and import no
torch. Results come back in the order the documents went out, whatever process made them, so the
shards do not depend on their number.
"""

import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ziphius.core.closing import Closing
from ziphius.core.errors import TokenizerError
from ziphius.data.document import Document
from ziphius.data.fim import Fim, arrange, cut
from ziphius.text.special import FIM_BEGIN, FIM_END, FIM_HOLE
from ziphius.text.tokenizer import Tokenizer

CHUNK_CHARACTERS = 1 << 19

Ids = NDArray[np.unsignedinteger[Any]]
Chunk = list[Document]
T = TypeVar("T")
R = TypeVar("R")


class Encoder:
    """Turn documents into ids: begin of text where the vocabulary wants it, text, end of text."""

    def __init__(self, tokenizer: Tokenizer, fim: Fim) -> None:
        if not tokenizer.eos_ids:
            raise TokenizerError(
                "The vocabulary has no end of text, which must stand between documents. Use a "
                "tokenizer that names an eos_token."
            )
        if fim.rate > 0.0 and not all(map(tokenizer.has_token, (FIM_BEGIN, FIM_HOLE, FIM_END))):
            raise TokenizerError(
                "The vocabulary has no fill-in-the-middle tokens. Use one of DeepSeek's, or set "
                "the FIM rate to 0."
            )
        self.tokenizer, self.fim = tokenizer, fim
        self.dtype = id_type(tokenizer.vocab_size)
        has_bos = tokenizer.add_bos and tokenizer.bos_id is not None
        self._head = [tokenizer.bos_id] if has_bos else []
        self._tail = [tokenizer.eos_ids[0]]

    def encode(self, documents: Chunk) -> list[Ids]:
        """Return the ids of each document."""
        cuts = [cut(document, self.fim) for document in documents]
        whole = [document.text for document, c in zip(documents, cuts, strict=True) if c is None]
        encoded = iter(self.tokenizer.encode_batch(whole))
        bodies = (
            next(encoded) if c is None else arrange(c, self.tokenizer.encode, self.tokenizer)
            for c in cuts
        )
        return [np.array([*self._head, *ids, *self._tail], dtype=self.dtype) for ids in bodies]


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Choose the smallest number that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def chunks(documents: Iterable[Document]) -> Iterator[Chunk]:
    """Group documents so that handing them to a process costs little beside encoding them."""
    chunk: Chunk = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class EncodingPool(Closing):
    """Processes that encode streams of documents, started when there is more than one chunk.

    Args:
        tokenizer: what all of them encode with.
        processes: how many beside this one; with 0 this one does the work.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self._tokenizer, self._processes = tokenizer, processes
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def encode(self, documents: Iterable[Document], fim: Fim) -> Iterator[tuple[Document, Ids]]:
        """Yield documents in their order with their ids; few chunks are in memory at a time."""
        Encoder(self._tokenizer, fim)  # refuses before any process starts
        for group, ids in self.map(partial(_encode, fim=fim), chunks(documents)):
            yield from zip(group, ids, strict=True)

    def map(self, work: Callable[[Tokenizer, T], R], chunks: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yield chunks in their order with what becomes of them; few are in memory at a time.

        Args:
            work: a function of a module, which the processes import.
            chunks: enough work each to be worth the way to another process and back.
        """
        stream = iter(chunks)
        first = list(islice(stream, 2))
        if self._processes == 0 or len(first) < 2:
            for chunk in chain(first, stream):
                yield chunk, work(self._tokenizer, chunk)
            return
        pool = self._pool or self._start()
        waiting: deque[tuple[T, Future[R]]] = deque()
        for chunk in chain(first, islice(stream, self._processes)):
            waiting.append((chunk, pool.submit(_work, work, chunk)))
        while waiting:
            chunk, future = waiting.popleft()
            done = future.result()
            waiting.extend((new, pool.submit(_work, work, new)) for new in islice(stream, 1))
            yield chunk, done

    def close(self) -> None:
        """Stop the processes, after what they are encoding."""
        self._stack.close()

    def _start(self) -> ProcessPoolExecutor:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ziphius-")))
        self._tokenizer.save(folder)
        self._pool = ProcessPoolExecutor(
            self._processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare_process,
            initargs=(folder,),
        )
        self._stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        return self._pool


_tokenizer: Tokenizer | None = None
"""Of a process of the pool; the only way to hand it something once."""


def _prepare_process(folder: Path) -> None:
    """Set a new process up: one thread, and Ctrl-C left to the process that has the terminal."""
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = Tokenizer.from_folder(folder)


def _work(work: Callable[[Tokenizer, T], R], chunk: T) -> R:
    assert _tokenizer is not None, "_prepare_process runs first"
    return work(_tokenizer, chunk)


def _encode(tokenizer: Tokenizer, chunk: Chunk, fim: Fim) -> list[Ids]:
    return Encoder(tokenizer, fim).encode(chunk)
