"""Which sequences a step runs: continuous batching with chunked prefill, preemption and sharing.

Every step all decoding sequences get their token first. What is left of the token budget goes to
prompts: half of it to the prompt that has waited longest, the rest to the shortest ones, so that
neither a long prompt keeps short ones waiting, nor short ones a long one for ever. A prompt is
admitted with blocks for all of its tokens, so only decoding can run out of blocks; then the
sequence with the lowest priority that came last gives up its blocks, and computes its tokens again
later. Ideas: Orca (OSDI 2022), Sarathi-Serve (arXiv 2403.02310), vLLM, SGLang.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from operator import attrgetter

from ziphius.engine.cache_pool import BlockCopy, CachePool
from ziphius.engine.config import EngineConfig
from ziphius.engine.disk_tier import DiskTier
from ziphius.engine.sequence import SequenceState, Status
from ziphius.engine.step import Chunk, StepArrays

_order = attrgetter("order")


class Scheduler:
    """Queues of sequences, and the blocks of those that run.

    Order of use in a step: `schedule`; then the model runs; then `computed` for every chunk,
    `fork` for the followers of a finished prompt, `start_decoding`, and `finish` where a sequence
    ends.

    Args:
        config: limits.
        pool: of blocks, of this scheduler alone.
        arrays: of the sequences that decode.
        on_release: told of every sequence that gives up its seat, before it does.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: CachePool,
        arrays: StepArrays,
        on_release: Callable[[SequenceState], None],
    ) -> None:
        self.pool = pool
        self.arrays = arrays
        self.waiting: list[SequenceState] = []
        """In the order in which they are to be admitted."""
        self.prefilling: list[SequenceState] = []
        self.num_preemptions = 0
        self._config = config
        self._on_release = on_release
        self._seats = list(reversed(range(config.max_num_seqs)))
        self._coming: dict[bytes, SequenceState] = {}
        """Key of a block -> the prefilling sequence that is about to publish it."""
        self.tier: DiskTier | None = None
        """Where blocks are looked for that the pool does not know."""

    @property
    def has_work(self) -> bool:
        """Some sequence is not finished."""
        return bool(self.waiting or self.prefilling or self.arrays.sequences)

    def enqueue(self, sequence: SequenceState) -> None:
        """Let a sequence wait until it is admitted."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> list[Chunk]:
        """Provide for one token of every decoding sequence, and return the pieces of prompts.

        What sequences want to look ahead is provided for as far as it takes nothing from others.
        """
        self._provide_blocks()
        if self.waiting:
            self._admit()
        looking = [sequence for sequence in self.arrays.sequences if sequence.num_lookahead]
        if looking:
            self._look_ahead(looking)
        return self._chunks() if self.prefilling else []

    def _look_ahead(self, sequences: list[SequenceState]) -> None:
        """Provide blocks for drafts, where there are any and the token budget has room."""
        left = self._config.max_num_batched_tokens - len(self.arrays)
        if self.prefilling:
            left //= 2
        for sequence in sequences:
            length, blocks = len(sequence.tokens), sequence.blocks
            wanted = self.pool.blocks_for(length + min(sequence.num_lookahead, left)) - len(blocks)
            if wanted > 0:
                blocks += self.pool.allocate(min(wanted, self.pool.num_free))
                self.arrays.set_table(sequence)
            room = len(blocks) * self.pool.block_size - length
            sequence.num_lookahead = min(sequence.num_lookahead, left, room)
            left -= sequence.num_lookahead

    def settle(self, now: float) -> None:
        """Bring arrays and blocks in line with the tokens that decoding sequences have got.

        Blocks that were looked ahead into and not reached are given back.
        """
        for sequence in self.arrays.sequences:
            if sequence.num_lookahead:
                self.publish(sequence)
                copies = self.pool.truncate(sequence.blocks, sequence.num_computed)
                assert not copies, "a block that is not full was shared"
                sequence.num_lookahead = 0
        self.arrays.settle(now)

    def _provide_blocks(self) -> None:
        sequences = self.arrays.sequences
        for sequence in [sequences[row] for row in self.arrays.rows_at_edge()]:
            if sequence.status is not Status.DECODING:
                continue  # preempted for one before it
            self.publish(sequence)
            while self.pool.num_free == 0 and sequence.status is Status.DECODING:
                self.preempt(max([*sequences, *self.prefilling], key=_order))
            if sequence.status is Status.DECODING:
                sequence.blocks += self.pool.allocate(1)
                self.arrays.set_block(sequence)

    def _admit(self) -> None:
        """Start the first ones in line, as many as there are seats and blocks for."""
        wanted = self._blocks_wanted()
        for sequence in list(self.waiting):
            if not self._seats:
                break
            found = self._find(sequence)
            if self._comes_soon(sequence, len(found)):
                continue
            needed = self.pool.blocks_for(len(sequence.tokens)) - len(found)
            if needed + self.pool.idle_among(found) + wanted > self.pool.num_free:
                break
            self._start(sequence, found)

    def _blocks_wanted(self) -> int:
        """Count the blocks to leave to those that run: one for each that may need another."""
        return sum(
            self.pool.blocks_for(sequence.max_tokens - 1) > len(sequence.blocks)
            for sequence in self.arrays.sequences
        )

    def _find(self, sequence: SequenceState) -> list[int]:
        """Look up the beginning of a sequence, but for its last token, whose logits are wanted."""
        if not self._config.prefix_caching or sequence.wants_scores:
            return []
        limit = (len(sequence.tokens) - 1) // self.pool.block_size
        sequence.extend_keys(self.pool.block_size, limit)
        return self.pool.find(sequence.keys[:limit])

    def _comes_soon(self, sequence: SequenceState, found: int) -> bool:
        """Tell whether a prefilling sequence is about to publish the block that follows."""
        limit = (len(sequence.tokens) - 1) // self.pool.block_size
        if not self._config.prefix_caching or sequence.wants_scores or found == limit:
            return False
        owner = self._coming.get(sequence.keys[found])
        return owner is not None and owner.order < sequence.order

    def _start(self, sequence: SequenceState, found: list[int]) -> None:
        self._leave_queue(sequence)
        self.pool.share(found)
        new = self.pool.allocate(self.pool.blocks_for(len(sequence.tokens)) - len(found))
        sequence.blocks = [*found, *new]
        known = len(found) + self._load(sequence, len(found))
        sequence.num_published = known
        sequence.num_computed = known * self.pool.block_size
        if not sequence.was_preempted:
            sequence.num_cached = sequence.num_computed
            self.pool.count_lookup(sequence.num_prompt, sequence.num_computed)
        self._sit(sequence, Status.PREFILLING)
        self.prefilling.append(sequence)
        for key in sequence.keys[known:]:
            self._coming.setdefault(key, sequence)

    def _load(self, sequence: SequenceState, found: int) -> int:
        """Fill blocks of a sequence behind those that were found; return how many."""
        if self.tier is None or sequence.wants_scores:
            return 0
        limit = (len(sequence.tokens) - 1) // self.pool.block_size
        keys, blocks = sequence.keys[found:limit], sequence.blocks[found:limit]
        loaded = self.tier.load(keys, blocks)
        for block, key in zip(blocks[:loaded], keys, strict=False):
            self.pool.publish(block, key)
        return loaded

    def _sit(self, sequence: SequenceState, status: Status) -> None:
        sequence.seat = self._seats.pop()
        sequence.status = status

    def _chunks(self) -> list[Chunk]:
        """Divide what decoding leaves of the budget among the prompts."""
        ahead = sum(sequence.num_lookahead for sequence in self.arrays.sequences)
        budget = self._config.max_num_batched_tokens - len(self.arrays) - ahead
        most = self._config.max_prefill_chunk or budget
        oldest = min(self.prefilling, key=_order)
        grants = {oldest: min(-(-budget // 2), most, oldest.num_remaining)}
        left = budget - grants[oldest]
        by_length = sorted(
            self.prefilling, key=lambda s: (s.request.priority, s.num_remaining, s.order)
        )
        for sequence in by_length:
            granted = grants.get(sequence, 0)
            more = min(left, most - granted, sequence.num_remaining - granted)
            if more:
                grants[sequence] = granted + more
                left -= more
        return [Chunk(sequence, count) for sequence, count in grants.items()]

    def computed(self, chunk: Chunk) -> None:
        """Note that the model has computed a chunk, without a number that is not finite."""
        chunk.sequence.num_computed += chunk.num_tokens
        self.publish(chunk.sequence)

    def publish(self, sequence: SequenceState) -> None:
        """Put the blocks that a sequence has filled into the index."""
        if not self._config.prefix_caching:
            return
        full = sequence.num_computed // self.pool.block_size
        sequence.extend_keys(self.pool.block_size, full)
        for place in range(sequence.num_published, full):
            key = sequence.keys[place]
            self.pool.publish(sequence.blocks[place], key)
            if self._coming.get(key) is sequence:
                del self._coming[key]
        sequence.num_published = full

    def fork(self, sequence: SequenceState) -> tuple[list[SequenceState], list[BlockCopy]]:
        """Give the followers of a sequence, whose prompt is computed, blocks of their own.

        Those for which there is no seat or block wait like any other. Returns the others, and what
        to copy.
        """
        forked: list[SequenceState] = []
        copies: list[BlockCopy] = []
        followers, sequence.followers = sequence.followers, []
        for follower in followers:
            if not self._seats or self.pool.num_free == 0:
                self.enqueue(follower)
                continue
            follower.blocks, copy = self.pool.fork(sequence.blocks, sequence.num_prompt)
            follower.num_computed = sequence.num_prompt
            follower.num_cached = sequence.num_cached
            follower.prompt_scores = sequence.prompt_scores
            follower.keys = list(sequence.keys)
            follower.last_key = sequence.last_key
            follower.num_published = len(follower.keys)
            follower.scheduled_time = sequence.scheduled_time
            copies += copy
            self._sit(follower, Status.PREFILLING)
            self.prefilling.append(follower)
            forked.append(follower)
        return forked, copies

    def start_decoding(self, sequence: SequenceState) -> None:
        """Move a sequence over whose tokens are all computed but the one just drawn."""
        self.prefilling.remove(sequence)
        sequence.status = Status.DECODING
        self.arrays.add(sequence)

    def preempt(self, sequence: SequenceState) -> None:
        """Take the blocks of a running sequence; it waits, and computes its tokens again."""
        self._stand_up(sequence)
        sequence.was_preempted = True
        self.num_preemptions += 1
        self.enqueue(sequence)

    def finish(self, sequence: SequenceState) -> None:
        """Let a sequence go, wherever it is."""
        if sequence.status is Status.WAITING:
            self._leave_queue(sequence)
        elif sequence.status in (Status.PREFILLING, Status.DECODING):
            self._stand_up(sequence)
        sequence.status = Status.FINISHED

    def _leave_queue(self, sequence: SequenceState) -> None:
        place = bisect_left(self.waiting, sequence.order, key=_order)
        assert self.waiting.pop(place) is sequence

    def _stand_up(self, sequence: SequenceState) -> None:
        """Give seat and blocks back; the index keeps what was published."""
        if sequence.status is Status.DECODING:
            self.publish(sequence)
        self._on_release(sequence)
        if sequence.status is Status.DECODING:
            self.arrays.remove(sequence)
        else:
            self.prefilling.remove(sequence)
            for key in sequence.keys[sequence.num_published :]:
                if self._coming.get(key) is sequence:
                    del self._coming[key]
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_published = 0
        self._seats.append(sequence.seat)
        sequence.seat = -1

    def check(self) -> None:
        """Assert that queues, seats, arrays and blocks agree."""
        decoding = self.arrays.sequences
        running = [*self.prefilling, *decoding]
        self.pool.check(sequence.blocks for sequence in running)
        assert not any(sequence.blocks for sequence in self.waiting)
        assert self.waiting == sorted(self.waiting, key=_order)
        seats = [*self._seats, *(sequence.seat for sequence in running)]
        assert sorted(seats) == list(range(self._config.max_num_seqs)), "a seat is lost or shared"
        assert all(s.status is Status.PREFILLING for s in self.prefilling)
        assert all(s.status is Status.WAITING for s in self.waiting)
        assert all(s.status is Status.DECODING for s in decoding)
        assert [sequence.row for sequence in decoding] == list(range(len(decoding)))
        assert all(len(s.tokens) == s.num_computed + 1 for s in decoding)
        assert set(self._coming.values()) <= set(self.prefilling)
