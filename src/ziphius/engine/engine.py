"""The engine: requests in, and a step at a time tokens out; the only loop that decodes.

A step asks the scheduler what runs, the runner for logits and the sampler for tokens. It knows
neither modules nor text. What goes wrong with one sequence (logits that are not finite, a runner or
sampler that raises) ends that sequence alone, with an error that says why, and nothing of what it
computed since its last good step can be found by others.

Shapes: Z sequences of a step, L rows that are drawn from, W vocabulary, M tokens of a step,
Y expert layers, K experts per token.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ziphius.core.errors import ConfigError, QueueFullError
from ziphius.engine.adapters import AdapterStore
from ziphius.engine.cache_pool import BlockCopy, CachePool
from ziphius.engine.config import EngineConfig
from ziphius.engine.disk_tier import DiskTier, cache_fingerprint
from ziphius.engine.drafts.proposer import Proposer
from ziphius.engine.drawing import Run, draw_runs, told
from ziphius.engine.forward import Forward
from ziphius.engine.limits import Limits, check_request
from ziphius.engine.metrics import Metrics
from ziphius.engine.runner import Runner
from ziphius.engine.sampler import NOT_FINITE, BatchSampler, Sampled, TopLogprobs
from ziphius.engine.scheduler import Scheduler
from ziphius.engine.sequence import FinishReason, Request, SequenceState, Status, StepOutput
from ziphius.engine.speculation import Speculation
from ziphius.engine.step import Chunk, StepArrays
from ziphius.models.cache import PagedCache

_PLACES = {Status.PREFILLING: "prefill", Status.DECODING: "decode"}


class Engine:
    """Run requests together; not thread-safe (`engine/async_engine.py` is).

    Example:
        engine = Engine(runner, cache, sampler, config, limits)
        engine.add(Request(prompt_ids, max_new_tokens=20))
        while engine.has_work:
            for output in engine.step():
                ...

    Args:
        runner: of the model.
        cache: that the runner reads and writes, of this engine alone.
        sampler: of this engine alone.
        config: limits; `num_blocks` is the cache's.
        limits: of the model.
        proposer: of drafts, if the config has `speculation`; the runner returns what it needs.
        device: where the runner wants ids and slots.
        adapters: that requests may name, where the runner knows them.
        not_native: why the runner is not the native program of its model, to be told.
        clock: seconds, rising.
    """

    def __init__(
        self,
        runner: Runner,
        cache: PagedCache,
        sampler: BatchSampler,
        config: EngineConfig,
        limits: Limits,
        *,
        proposer: Proposer | None = None,
        device: torch.device | None = None,
        adapters: AdapterStore | None = None,
        not_native: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.weight_version = 0
        """What whoever changes the weights calls those of now; it stands on every output."""
        self._cache = cache
        self._sampler = sampler
        self.config = config
        self.not_native = not_native
        self._limits = limits
        self._clock = clock
        device = device or torch.device("cpu")
        self._forward = Forward(runner, cache, device)
        self._pool = CachePool(cache.num_blocks, cache.block_size)
        self._arrays = StepArrays(cache, config.max_num_seqs, device)
        self._scheduler = Scheduler(config, self._pool, self._arrays, self._release_seat)
        self._requests: dict[int, list[SequenceState]] = {}
        self._next_id = 0
        self._metrics = Metrics()
        self._adapters = adapters
        self._tier: DiskTier | None = None
        self.figures: list[Callable[[], Mapping[str, int]]] = []
        """Of other parts of the model and the engine, for `metrics`."""
        self.on_end: Callable[[StepOutput], None] | None = None
        """Hears of every sequence that `end` or `cancel` ends, of which no step says so."""
        assert (proposer is None) == (config.speculation is None)
        self._speculation = None
        if proposer is not None and config.speculation is not None:
            self._speculation = Speculation(proposer, config.speculation, sampler, clock)

    @property
    def runner(self) -> Runner:
        """Return what computes the steps; another one may take its place while nothing runs."""
        return self._forward.runner

    @runner.setter
    def runner(self, runner: Runner) -> None:
        assert not self.has_work
        self._forward.runner = runner

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        """Sequences that have a seat."""
        return len(self._arrays) + len(self._scheduler.prefilling)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a seat or for blocks."""
        return len(self._scheduler.waiting)

    def add(self, request: Request) -> int:
        """Take a request on and return its number.

        Raises:
            ConfigError: it can never work; the message says why.
            QueueFullError: too many wait already.
        """
        try:
            adapter_id = self.check_request(request)
        except ConfigError:
            self._metrics.admission_rejections["invalid"] += 1
            raise
        if self.num_waiting >= self.config.max_queue:
            self._metrics.admission_rejections["queue_full"] += 1
            raise QueueFullError(
                f"{self.num_waiting:,} requests are waiting, as many as max_queue allows: try "
                "again later"
            )
        request_id, self._next_id = self._next_id, self._next_id + 1
        now = self._clock()
        sequences = [
            SequenceState(request, request_id, n, now, adapter_id) for n in range(request.n)
        ]
        self._requests[request_id] = sequences
        self._lead(sequences)
        return request_id

    def check_request(self, request: Request) -> str:
        """Refuse what `add` would refuse at any time; return the id of the adapter it names.

        Raises:
            ConfigError: it can never work; the message says why.
        """
        check_request(request, self._limits)
        self._check_room(request)
        return self._adapter_id(request.adapter)

    def _check_room(self, request: Request) -> None:
        length, new = len(request.prompt_ids), request.max_new_tokens
        if self._pool.blocks_for(length + max(new, 1) - 1) > self._pool.num_blocks:
            raise ConfigError(
                f"the prompt has {length} tokens and asks for {new} more, but the cache holds "
                f"{self._pool.num_blocks * self._pool.block_size}: ask for less, or give the "
                "engine more blocks (num_blocks)"
            )

    def _adapter_id(self, name: str) -> str:
        if name and self._adapters is None:
            raise ConfigError(f"adapter = {name!r}: this engine was built without adapters.")
        return self._adapters.id_of(name) if self._adapters is not None else ""

    def _lead(self, sequences: list[SequenceState]) -> None:
        """Let the first of these compute the prompt for all."""
        leader, *followers = sequences
        leader.followers = followers
        for follower in followers:
            follower.status = Status.ATTACHED
        self._scheduler.enqueue(leader)

    def cancel(self, request_id: int) -> bool:
        """End a request now, whatever it is doing; tell whether there was something to end."""
        sequences = list(self._requests.get(request_id, []))
        for sequence in sequences:
            self.end(request_id, sequence.sample, "cancelled")
        return bool(sequences)

    def end(self, request_id: int, sample: int, reason: FinishReason = "stop") -> None:
        """End one sample from outside, as when a stop string shows up in its text."""
        for sequence in list(self._requests.get(request_id, [])):
            if sequence.sample == sample and sequence.status is not Status.FINISHED:
                if reason == "cancelled":
                    self._metrics.cancelled[_PLACES.get(sequence.status, "queue")] += 1
                self._finish(sequence, reason)
                if self.on_end is not None:
                    version = self.weight_version
                    self.on_end(
                        StepOutput(
                            request_id, sample, None, math.nan, reason, weight_version=version
                        )
                    )

    def keep_on_disk(self, folder: Path, max_bytes: int, *, model: str, runner: str) -> None:
        """Put a folder under the prefix cache, before the first request (`disk_tier.py`).

        Blocks in it have no routes: none are returned from then on.

        Args:
            folder: for blocks.
            max_bytes: of them.
            model: its fingerprint.
            runner: what kind of runner computes it.
        """
        assert self._tier is None
        assert not self.has_work
        fingerprint = cache_fingerprint(model, runner, self._cache)
        self._forward.keeps_routes = False
        self._tier = DiskTier(folder, self._cache, fingerprint, max_bytes)
        self._scheduler.tier = self._tier
        self._pool.on_evict = self._tier.store
        self.figures.append(self._tier.metrics)

    def close(self) -> None:
        """Cancel what runs, and write to the disk tier, if there is one, what is not there yet."""
        for request_id in list(self._requests):
            self.cancel(request_id)
        if self._tier is not None:
            for block, key in self._pool.known():
                self._tier.store(block, key, wait=True)
            self._tier.close()
            self._scheduler.tier = self._tier = self._pool.on_evict = None

    def reset_prefix_cache(self) -> None:
        """Forget what was computed of earlier texts, after a change of weights; nothing may run."""
        assert not self.has_work, "the cache rows of running sequences are of the old weights"
        self._pool.forget_all()
        if self._tier is not None:
            self._tier.renew()

    def step(self) -> list[StepOutput]:
        """Compute one step, and return what it did to each sequence that got a token or ended."""
        speculation = self._speculation
        if speculation is not None:
            speculation.plan(self._arrays.sequences)
        chunks = self._scheduler.schedule()
        if not chunks and not self._arrays.sequences:
            assert not self._scheduler.waiting, "sequences wait for nothing"
            return []
        if speculation is not None:
            speculation.propose(self._arrays.sequences)
        outputs: list[StepOutput] = []
        logits_LW, chunks = self._logits(chunks, outputs)
        started: list[SequenceState] = []
        if chunks:
            logits_LW, started = self._after_chunks(logits_LW, chunks, outputs)
        runs: list[Run] = []
        if any(sequence.num_lookahead for sequence in self._arrays.sequences):
            runs = self._draw_behind_drafts(logits_LW, started, outputs)
        elif len(logits_LW):
            self._draw(logits_LW, started, outputs)
        if speculation is not None:
            speculation.finish(runs)
        self._metrics.num_steps += 1
        return outputs

    def _logits(self, chunks: list[Chunk], outputs: list[StepOutput]) -> tuple[Tensor, list[Chunk]]:
        """Run the model; if it raises, run every sequence alone to find out which it fails on."""
        now = self._clock()
        for chunk in chunks:
            chunk.sequence.scheduled_time = chunk.sequence.scheduled_time or now
        batch = self._arrays.batch(chunks)
        try:
            logits_ZW, hidden_MD = self._forward(batch, self._arrays, chunks)
        except Exception as error:
            self._metrics.num_steps_apart += 1
            self._metrics.step_error = told(error)
            if self._speculation is not None:
                self._speculation.spoil(batch, self._arrays.sequences, chunks)
            return self._logits_apart(chunks, outputs)
        if self._speculation is not None:
            self._speculation.begin(batch, self._arrays.sequences, chunks, hidden_MD)
        return logits_ZW, chunks

    def _logits_apart(
        self, chunks: list[Chunk], outputs: list[StepOutput]
    ) -> tuple[Tensor, list[Chunk]]:
        """Compute a step sequence by sequence, and end those that the model raises on."""
        logits, errors = self._forward.apart(self._arrays.sequences, chunks)
        for sequence, error in errors.items():
            self._fail(sequence, error, outputs)
        chunks = [chunk for chunk in chunks if chunk.sequence in logits]
        left = [*self._arrays.sequences, *(chunk.sequence for chunk in chunks)]
        if not left:
            return torch.empty(0, self._limits.vocab_size), []
        return torch.stack([logits[sequence] for sequence in left]), chunks

    def _after_chunks(
        self, logits_LW: Tensor, chunks: list[Chunk], outputs: list[StepOutput]
    ) -> tuple[Tensor, list[SequenceState]]:
        """Sort out which prompts are complete; return what to draw from, and who starts with it."""
        rows = len(logits_LW) - len(chunks)
        picks, started = list(range(rows)), []
        is_finite = logits_LW[rows:].sum(-1).isfinite().tolist()
        for row, (chunk, is_good) in enumerate(zip(chunks, is_finite, strict=True), rows):
            sequence = chunk.sequence
            is_complete = chunk.num_tokens == sequence.num_remaining
            if not is_good:
                self._fail(sequence, NOT_FINITE, outputs)
                continue
            self._scheduler.computed(chunk)
            if is_complete and sequence.request.max_new_tokens == 0:
                outputs.append(self._end_scoring(sequence))
            elif is_complete:
                followers, copies = self._scheduler.fork(sequence)
                if copies:
                    self._copy(copies)
                for one in [sequence, *followers]:
                    if self._take_seat(one, outputs):
                        started.append(one)
                        picks.append(row)
        if picks == list(range(len(logits_LW))):
            return logits_LW, started
        return logits_LW[torch.tensor(picks, dtype=torch.int64, device=logits_LW.device)], started

    def _draw(
        self, logits_LW: Tensor, started: list[SequenceState], outputs: list[StepOutput]
    ) -> None:
        """Draw the next token of all rows, and of those that start behind them."""
        arrays = self._arrays
        rows = len(arrays)
        seats, positions = arrays.seats, arrays.lengths
        if started:
            seats = [*seats, *(sequence.seat for sequence in started)]
            starts = [len(sequence.tokens) for sequence in started]
            positions = np.concatenate([positions, starts])
        try:
            sampled = self._sampler(logits_LW, seats, positions)
        except Exception:
            alone = [Run(s, [], place) for place, s in enumerate([*arrays.sequences, *started])]
            sampled = draw_runs(self._sampler, logits_LW, alone)
        ids_L = sampled.ids_L.numpy()
        now = self._clock()
        if rows:
            latency = self._metrics.histograms["inter_token_latency"]
            latency.observe_all(now - arrays.last_times[:rows])
            arrays.advance(ids_L[:rows], now)
        sequences = [*arrays.sequences, *started]
        self._metrics.generation_tokens += len(sequences) - len(sampled.failures)
        drawn = zip(sequences, ids_L.tolist(), sampled.logprobs_L.tolist(), strict=True)
        for place, (sequence, token_id, logprob) in enumerate(drawn):
            if place in sampled.failures:
                self._fail(sequence, sampled.failures[place], outputs)
            else:
                output = self._accept(sequence, token_id, logprob, now, sampled.top.get(place))
                outputs.append(output)

    def _draw_behind_drafts(
        self, logits_LW: Tensor, started: list[SequenceState], outputs: list[StepOutput]
    ) -> list[Run]:
        """Draw for every sequence as long as its drafts are what is drawn, and one token more."""
        runs, row = [], 0
        for sequence in [*self._arrays.sequences, *started]:
            drafts = sequence.drafts if sequence.status is Status.DECODING else []
            runs.append(Run(sequence, drafts, row))
            row += 1 + len(drafts)
        sampled = draw_runs(self._sampler, logits_LW, runs)
        now = self._clock()
        for run in runs:
            self._take(run, sampled, now, outputs)
        self._scheduler.settle(now)
        return runs

    def _take(self, run: Run, sampled: Sampled, now: float, outputs: list[StepOutput]) -> None:
        """Let a sequence go on with what was drawn for it, up to its first wrong draft."""
        sequence = run.sequence
        latency = self._metrics.histograms["inter_token_latency"]
        for place in range(run.row, run.row + 1 + len(run.drafts)):
            if place in sampled.failures:
                self._fail(sequence, sampled.failures[place], outputs)
                break
            is_first = sequence.status is not Status.DECODING
            if not is_first:
                latency.observe(now - sequence.last_token_time)
            self._metrics.generation_tokens += 1
            token_id = int(sampled.ids_L[place])
            logprob = float(sampled.logprobs_L[place])
            outputs.append(self._accept(sequence, token_id, logprob, now, sampled.top.get(place)))
            if not run.matches(token_id) or sequence.status is not Status.DECODING:
                break

    def _accept(
        self,
        sequence: SequenceState,
        token_id: int,
        logprob: float,
        now: float,
        top: TopLogprobs | None,
    ) -> StepOutput:
        """Let a sequence go on with a token, or end with it; tell the prompt's scores beside it."""
        if sequence.status is Status.DECODING:
            sequence.num_computed += 1
        elif sequence.first_token_time == 0.0:
            sequence.first_token_time = now
            self._metrics.count_first_token(sequence, now)
        tokens = sequence.tokens
        tokens.append(token_id)
        sequence.last_token_time = now
        stop_reason, error = self._tell(sequence, token_id)
        reason: FinishReason | None = None
        routes_TYK = None
        if error is not None:
            reason = "error"
        elif stop_reason is not None or token_id in sequence.stop_ids:
            reason = "stop"
        elif len(tokens) == sequence.max_tokens:
            reason = "length"
        elif sequence.status is not Status.DECODING:
            self._scheduler.start_decoding(sequence)
        if reason is not None:
            routes_TYK = self._forward.routes_of(sequence)
            self._finish(sequence, reason)
        return StepOutput(
            sequence.request_id,
            sequence.sample,
            token_id,
            logprob,
            reason,
            error,
            top,
            stop_reason,
            sequence.take_scores() if sequence.prompt_scores else None,
            routes_TYK,
            self.weight_version,
        )

    def _tell(self, sequence: SequenceState, token_id: int) -> tuple[str | None, str | None]:
        """Let the sampler hear a token; return why it ends the sequence, and what went wrong."""
        try:
            return self._sampler.accept(sequence.seat, token_id), None
        except Exception as error:
            return None, told(error)

    def _end_scoring(self, sequence: SequenceState) -> StepOutput:
        """End a sequence of which nothing was wanted but the scores of its prompt."""
        self._metrics.count_first_token(sequence, self._clock())
        self._finish(sequence, "length")
        scores = sequence.take_scores()
        number, sample = sequence.request_id, sequence.sample
        version = self.weight_version
        return StepOutput(
            number, sample, None, math.nan, "length", prompt_scores=scores, weight_version=version
        )

    def _fail(self, sequence: SequenceState, error: str, outputs: list[StepOutput]) -> None:
        """End a sequence, and those that wait for it to compute their prompt."""
        followers, sequence.followers = sequence.followers, []
        for one in [sequence, *followers]:
            self._finish(one, "error")
            where = f"{error} (at position {len(one.tokens)} of sequence {one.sequence_id})"
            number, sample, version = one.request_id, one.sample, self.weight_version
            outputs.append(
                StepOutput(number, sample, None, math.nan, "error", where, weight_version=version)
            )

    def _finish(self, sequence: SequenceState, reason: FinishReason) -> None:
        siblings = self._requests[sequence.request_id]
        if sequence.status is Status.ATTACHED:
            for sibling in siblings:
                if sequence in sibling.followers:
                    sibling.followers.remove(sequence)
        self._scheduler.finish(sequence)
        sequence.finish_reason = reason
        if sequence.followers:
            self._lead(sequence.followers)
            sequence.followers = []
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request_id]
        self._metrics.count_finished(sequence, self._clock())

    def _take_seat(self, sequence: SequenceState, outputs: list[StepOutput]) -> bool:
        """Prepare the sampler for a sequence; one that was preempted goes on as if it had not."""
        request = sequence.request
        try:
            self._sampler.add(
                sequence.seat,
                request.sampling,
                sequence.sequence_id,
                request.prompt_ids,
                [] if request.processors is None else request.processors(),
                token_ids=sequence.tokens[sequence.num_prompt :],
                logprobs=request.logprobs,
            )
        except Exception as error:
            self._fail(sequence, told(error), outputs)
            return False
        sequence.is_seated = True
        return True

    def _release_seat(self, sequence: SequenceState) -> None:
        if sequence.is_seated:
            self._sampler.remove(sequence.seat)
            sequence.is_seated = False
        if self._speculation is not None:
            self._speculation.forget(sequence)

    def _copy(self, copies: list[BlockCopy]) -> None:
        sources, targets = zip(*copies, strict=True)
        self._cache.copy_blocks(sources, targets)
        self._forward.copy_blocks(sources, targets)
        if self._speculation is not None:
            self._speculation.proposer.copy_blocks(sources, targets)

    def metrics(self) -> dict[str, Any]:
        """Return counters, gauges and histograms as plain data."""
        return {
            "num_requests_running": self.num_running,
            "num_requests_waiting": self.num_waiting,
            "kv_cache_usage_perc": self._pool.usage,
            "prefix_cache_queries": self._pool.queries,
            "prefix_cache_hits": self._pool.hits,
            "num_preemptions": self._scheduler.num_preemptions,
            **{name: figure for part in self.figures for name, figure in part().items()},
            **self._metrics.snapshot(),
            **(self._speculation.snapshot() if self._speculation is not None else {}),
        }

    def check(self) -> None:
        """Assert that no block, seat or request is lost, and none is held twice."""
        self._scheduler.check()
        live = [sequence for sequences in self._requests.values() for sequence in sequences]
        running = [*self._scheduler.prefilling, *self._arrays.sequences]
        queued = [*running, *self._scheduler.waiting]
        attached = [follower for sequence in queued for follower in sequence.followers]
        assert sorted(s.order for s in live) == sorted(s.order for s in [*queued, *attached])
        assert all(sequence.status is Status.ATTACHED for sequence in attached)
        assert all(sequence.is_seated == (sequence.row >= 0) for sequence in queued)
        assert self._sampler.rows == {s.seat for s in queued if s.is_seated}, "a row is lost"
