"""Blocks of the prefix cache that memory has no room for, kept in a folder.

A block goes there when the pool gives its content up, and when the engine is closed. Later requests
find it by its key, in this process, in others that share the folder, and after a restart. A block
is one file, whose name is the SHA-256 of its key (all tokens up to its end, salt and adapter, see
`cache_pool.py`) and of what its numbers hang on: the model's fingerprint, the layout of the cache,
the software, and what its kernels are compiled for. The file repeats its name and has a checksum.
What is damaged is deleted, counted, and computed anew: it is never used.

Files are written beside the engine's steps by a thread. If that falls behind by more than
`BACKLOG_BYTES`, blocks are given up instead, and counted. Files appear whole or not at all, but
are not forced to the disk one by one: after a power cut, checksums tell which of them are good. On
a full disk new blocks take the place of old ones. Nothing is locked: two processes that write a
block write the same bytes, and a file that another process deletes is one that is not there.

The folder holds what can be read out of the caches of all its prompts: guard it like them.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path

import torch

import ziphius
from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.files import FULL, sweep, write_file
from ziphius.models.cache import PagedCache
from ziphius.ops.native import build

_log = logging.getLogger(__name__)

LAYOUT = 1
"""Changes whenever the bytes of a block would mean something else."""
BACKLOG_BYTES = 2**28
_MAGIC = b"ziphius block 1\n"
_SUFFIX = ".block"
_DIGEST = 32
_HEADER = len(_MAGIC) + 2 * _DIGEST


def cache_fingerprint(model: str, runner: str, cache: PagedCache) -> bytes:
    """Return the SHA-256 of all that the numbers in a cache hang on, but the tokens.

    Kernels of another source, compiler or CPU may give other last bits: their rows are not mixed.

    Args:
        model: its fingerprint.
        runner: what computes it; two kinds of runners differ in the last bits.
        cache: its dtype and layout.
    """
    described = {
        "layout": LAYOUT,
        "model": model,
        "runner": runner,
        "ziphius": ziphius.__version__,
        "torch": torch.__version__,
        "torch_units": torch.backends.cpu.get_cpu_capability(),
        "kernels": build.digest(),
        "block_size": cache.block_size,
        "numbers": str(cache.dtype),
        "rows": [[astuple(row) for row in layouts] for layouts in cache.layouts],
    }
    return sha256(json.dumps(described, sort_keys=True).encode()).digest()


class DiskTier:
    """Blocks in a folder, the ones longest out of use deleted where they exceed a size.

    `store` and `load` are for one thread, the engine's.

    Args:
        folder: made if it is not there; of this use alone.
        cache: that blocks are copied from and to.
        fingerprint: what `cache_fingerprint` says.
        max_bytes: of all files in the folder, whatever model they are for. Several processes may
            exceed it by a sixteenth each for a while.

    Raises:
        ConfigError: the size would not hold a block.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, cache: PagedCache, fingerprint: bytes, max_bytes: int) -> None:
        self.stored = self.loaded = self.damaged = self.deleted = self.dropped = self.failed = 0
        self._folder, self._cache, self._max_bytes = folder, cache, max_bytes
        self._fingerprint = fingerprint
        self._block_bytes = cache.size_bytes // cache.num_blocks
        self._file_bytes = _HEADER + self._block_bytes
        if max_bytes < self._file_bytes:
            raise ConfigError(
                f"disk_cache_bytes is {max_bytes:,}, but a block of the cache has "
                f"{self._file_bytes:,}: allow more."
            )
        self._prepare()
        self._pending: dict[Path, bytes] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._idle = threading.Condition(self._lock)
        self._total_bytes = self._since_scan = 0
        self._make_room(0)
        self._thread = threading.Thread(target=self._write_all, name="disk tier", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (self._folder / f"{number:02x}").mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"Cannot write {self._folder}: {error.strerror}. Name another disk_cache."
            ) from error
        for number in range(256):
            sweep(self._folder / f"{number:02x}")

    def _path(self, key: bytes) -> Path:
        name = sha256(self._fingerprint + key).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}{_SUFFIX}"

    def store(self, block: int, key: bytes, *, wait: bool = False) -> None:
        """Keep the content of a block; returns when it is copied, before it is written.

        Args:
            block: whose.
            key: of its content.
            wait: rather than give it up where the thread is behind.
        """
        path = self._path(key)
        with self._idle:
            if path in self._pending:
                return
            if wait:
                self._idle.wait_for(self._has_room)
            elif not self._has_room():
                self.dropped += 1
                return
        if _touch(path):
            return
        payload = self._read(block)
        with self._lock:
            self._pending[path] = payload
        self._queue.put(path)

    def _has_room(self) -> bool:
        return len(self._pending) * self._file_bytes < BACKLOG_BYTES

    def _read(self, block: int) -> bytes:
        """Copy the rows of a block, layer by layer."""
        start, size = block * self._cache.block_size, self._cache.block_size
        rows = [
            part[start : start + size].cpu().contiguous().view(torch.uint8).numpy().data
            for parts in self._cache.parts
            for part in parts
        ]
        return b"".join(rows)

    def load(self, keys: Sequence[bytes], blocks: Sequence[int]) -> int:
        """Fill blocks with what was kept under these keys, up to the first that is not there.

        Returns:
            How many were filled; the content of the others is as it was.
        """
        for count, (key, block) in enumerate(zip(keys, blocks, strict=True)):
            path = self._path(key)
            payload = self._payload(path)
            if payload is None:
                return count
            self._fill(block, payload)
            self.loaded += 1
        return len(keys)

    def _payload(self, path: Path) -> bytes | memoryview | None:
        """Return the rows of a block, None if it is not there or damaged."""
        with self._lock:
            pending = self._pending.get(path)
        if pending is not None:
            return pending
        try:
            with path.open("rb") as file:
                content = file.read(self._file_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._fail(f"Cannot read {path}: {error.strerror}.")
            return None
        payload = memoryview(content)[_HEADER:]
        if len(content) != self._file_bytes or content[:_HEADER] != _header(path, payload):
            self.damaged += 1
            _log.warning("%s: a block of the cache is damaged; it is computed anew.", path)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        _touch(path)
        return payload

    def _fill(self, block: int, payload: bytes | memoryview) -> None:
        numbers = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        start, size = block * self._cache.block_size, self._cache.block_size
        position = 0
        for parts in self._cache.parts:
            for part in parts:
                rows = part[start : start + size]
                piece = numbers[position : position + rows.nbytes]
                # An odd place of a part in the file is no place for its numbers in memory.
                rows.copy_(piece.clone().view(part.dtype).view(rows.shape))
                position += rows.nbytes

    def renew(self) -> None:
        """Find nothing that was kept before: the weights have changed.

        What is kept from now on is found by this object alone.
        """
        self._fingerprint = sha256(self._fingerprint + os.urandom(_DIGEST)).digest()

    def flush(self) -> None:
        """Wait until all is written."""
        with self._idle:
            self._idle.wait_for(lambda: not self._pending)

    def close(self) -> None:
        """Write what is left, and end the thread. Nothing can be stored after that."""
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (path := self._queue.get()) is not None:
            payload = self._pending[path]
            try:
                self._make_room(self._file_bytes)
                self._write(path, _header(path, payload) + payload)
            except (OSError, OutputError) as error:
                self._fail(str(error) if isinstance(error, OutputError) else f"{error}.")
            finally:
                with self._idle:
                    del self._pending[path]
                    self._idle.notify_all()

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file; on a full disk in the place of those longest out of use."""
        try:
            write_file(path, content, durable=False)
        except OutputError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL):
                raise
            self._make_room(self._file_bytes, disk_is_full=True)
            write_file(path, content, durable=False)
        self.stored += 1
        self._total_bytes += self._file_bytes
        self._since_scan += self._file_bytes

    def _make_room(self, size: int, *, disk_is_full: bool = False) -> None:
        """Delete the blocks longest out of use until this many bytes more are allowed.

        A full disk allows what is there now.
        """
        is_full = disk_is_full or self._total_bytes + size > self._max_bytes
        if size and not is_full and self._since_scan < self._max_bytes // 16:
            return
        found = sorted(self._scan())
        self._total_bytes, self._since_scan = sum(size for _, size, _ in found), 0
        allowed = self._total_bytes if disk_is_full else self._max_bytes
        if self._total_bytes + size <= allowed:
            return
        # Some more than needed, so that not every block is worth a look at all of them.
        wanted = min(allowed - size, allowed * 15 // 16)
        for _, length, name in found:
            if self._total_bytes <= wanted:
                break
            with suppress(FileNotFoundError):
                os.unlink(name)
                self.deleted += 1
            self._total_bytes -= length

    def _scan(self) -> list[tuple[int, int, str]]:
        """List the blocks in the folder: when each was last in use, its size, its path."""
        found = []
        for number in range(256):
            with os.scandir(self._folder / f"{number:02x}") as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if entry.name.endswith(_SUFFIX):
                            status = entry.stat()
                            found.append((status.st_mtime_ns, status.st_size, entry.path))
        return found

    def _fail(self, reason: str) -> None:
        if not self.failed:
            _log.warning("%s The disk tier goes on without; it warns only once.", reason)
        self.failed += 1

    def metrics(self) -> dict[str, int]:
        """Return counters of blocks, and the bytes in the folder as last known."""
        return {
            "disk_cache_bytes": self._total_bytes,
            "disk_cache_stored_blocks": self.stored,
            "disk_cache_loaded_blocks": self.loaded,
            "disk_cache_damaged_blocks": self.damaged,
            "disk_cache_deleted_blocks": self.deleted,
            "disk_cache_dropped_blocks": self.dropped,
            "disk_cache_failures": self.failed,
        }


def _header(path: Path, payload: bytes | memoryview) -> bytes:
    """Say what stands before a block in the file of this name."""
    name = bytes.fromhex(path.parent.name + path.name.removesuffix(_SUFFIX))
    return _MAGIC + name + sha256(payload).digest()


def _touch(path: Path) -> bool:
    """Put down that a file is in use; tell whether it is there."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True
