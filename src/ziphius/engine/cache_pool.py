"""Who owns which block of the cache, and which blocks hold a text that is known already.

A block is in exactly one of three places: referenced by sequences, idle (unreferenced, its content
still in the index, the next to be evicted first in line), or empty. The index is a chain of content
hashes, as in vLLM: the key of a block says all tokens up to its end, the tenant's salt and the
adapter, so that equal keys mean equal cache rows. SHA-256, as nobody must find another text with
the same key. Numbers only: the memory itself is `models/cache.py`.
"""

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

BlockCopy = tuple[int, int]
"""Source and target of a block whose rows have to be copied before the next step."""


def root_key(cache_salt: str = "", adapter_id: str = "") -> bytes:
    """Return the key that the chain of a tenant and an adapter begins with."""
    return hashlib.sha256(repr((cache_salt, adapter_id)).encode()).digest()


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the key of a full block behind the block whose key is `parent`."""
    return hashlib.sha256(parent + struct.pack(f"<{len(token_ids)}q", *token_ids)).digest()


class CachePool:
    """Blocks with reference counts, and the index of what they hold; O(1) per block.

    Args:
        num_blocks: of the cache.
        block_size: tokens of a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.queries = 0
        """Tokens that were looked for in the index (`count_lookup`)."""
        self.hits = 0
        """Tokens of them that were found."""
        self.evictions = 0
        """Blocks whose content was given up for another."""
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        self._empty = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: empty and idle ones."""
        return len(self._empty) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1."""
        return 1 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest prefix of `keys` that is known; takes no reference."""
        found = []
        for key in keys:
            block = self._index.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Sequence[int]) -> int:
        """Count those of `blocks` that `num_free` counts too."""
        return sum(block in self._idle for block in blocks)

    def count_lookup(self, num_tokens: int, found: int) -> None:
        """Put down one look into the index, for the figures alone."""
        self.queries += num_tokens
        self.hits += found

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each of these blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hand out blocks without content, at most `num_free`; each has one reference."""
        assert count <= self.num_free, f"{count} blocks asked of {self.num_free} free ones"
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            self.evictions += 1
        self._references[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Give one reference of each block back, the last of the sequence first.

        So the end of a text is evicted before its beginning, without which it could not be found.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} released twice"
            if self._references[block] == 0:
                if self._keys[block] is None:
                    self._empty.append(block)
                else:
                    self._idle[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Let others find a block that is full and will not be written again.

        Where another block has this key already, that one stays the one to be found.
        """
        assert self._references[block] > 0
        if self._keys[block] is None and key not in self._index:
            self._keys[block] = key
            self._index[key] = block

    def fork(self, blocks: Sequence[int], num_tokens: int) -> tuple[list[int], list[BlockCopy]]:
        """Return the blocks of a second sequence with the same `num_tokens` tokens.

        Full blocks are shared. A last one that is not full is copied, because both will write to
        it: the caller needs a free block then, and copies its rows.
        """
        full = num_tokens // self.block_size
        shared = list(blocks[:full])
        self.share(shared)
        if num_tokens % self.block_size == 0:
            return shared, []
        [own] = self.allocate(1)
        return [*shared, own], [(blocks[full], own)]

    def truncate(self, blocks: list[int], num_tokens: int) -> list[BlockCopy]:
        """Cut a sequence's blocks, in place, to its first tokens, as when drafts are rejected.

        A last block that is no longer full is about to be written: if others read it, or can find
        it, its place is taken by a copy, for which the caller needs a free block.
        """
        keep = self.blocks_for(num_tokens)
        self.release(blocks[keep:])
        del blocks[keep:]
        if num_tokens % self.block_size == 0:
            return []
        last = blocks[-1]
        if self._references[last] == 1 and self._keys[last] is None:
            return []
        [own] = self.allocate(1)
        blocks[-1] = own
        self.release([last])
        return [(last, own)]

    def forget_all(self) -> None:
        """Empty the index: the weights have changed, so no row of the cache is right any more."""
        for block in self._index.values():
            self._keys[block] = None
        self._index.clear()
        self._empty.extend(self._idle)
        self._idle.clear()

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        assert self._index[key] == block
        del self._index[key]
        self._keys[block] = None

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that no block is leaked or owned twice, given the blocks of all live sequences."""
        held: Counter[int] = Counter()
        for table in tables:
            assert len(set(table)) == len(table), "a sequence holds a block twice"
            held.update(table)
        for block, references in enumerate(self._references):
            assert references == held[block], f"block {block}: {references} != {held[block]}"
        empty, idle = set(self._empty), set(self._idle)
        assert len(empty) == len(self._empty), "a block is empty twice"
        for block in range(self.num_blocks):
            places = (block in empty) + (block in idle) + (held[block] > 0)
            assert places == 1, f"block {block} is in {places} places"
            assert block not in empty or self._keys[block] is None
            assert block not in idle or self._keys[block] is not None
        indexed = {block: key for block, key in enumerate(self._keys) if key is not None}
        assert {block: key for key, block in self._index.items()} == indexed
