"""An engine over a model that is a hash, for tests of all that is not the model.

The mock runner keeps nothing but the cache: it writes the new token ids into it, reads the whole of
every sequence back through the block tables, and hashes that to logits. So a wrong slot, table,
copy or a block that two sequences write to changes tokens, and `oracle` says what they should be.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts.proposer import Proposer
from ziphius.engine.engine import Engine
from ziphius.engine.limits import Limits
from ziphius.engine.runner import RunnerOutput
from ziphius.engine.sampler import BatchSampler, Sampled
from ziphius.engine.sequence import Request
from ziphius.models.cache import CacheSpec, PagedCache
from ziphius.models.forward_batch import ForwardBatch

VOCAB = 32
CONTEXT = 256
POISON = VOCAB - 1
"""A prompt that holds this token has logits of NaN."""
BOMB = VOCAB - 2
"""The mock runner raises on a sequence that holds this token."""


def mock_logits(tokens: Sequence[int]) -> Tensor:
    """Hash a text to logits [W]."""
    if POISON in tokens:
        return torch.full((VOCAB,), torch.nan)
    state = 12345
    for token in tokens:
        state = (state * 1_000_003 + token + 7) % 2**31
    mixed = (state * np.arange(1, VOCAB + 1, dtype=np.int64) * 2_654_435_761) % 2**32
    logits = torch.from_numpy((mixed % 4001).astype(np.float32) / 1000)
    logits[BOMB:] -= 2
    return logits


class MockRunner:
    """See above; `calls` are the numbers of new tokens of every sequence, by step."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        paged = batch.paged
        assert paged is not None
        assert batch.logits_rows_L is not None
        assert paged.block_tables_ZJ.is_contiguous()
        assert len(set(paged.slot_mapping_M.tolist())) == batch.input_ids_BT.shape[1]
        ids_M = batch.input_ids_BT[0]
        paged.cache.write(0, paged.slot_mapping_M, ids_M.float()[:, None])
        texts = [self._text(batch, row) for row in range(len(paged.seq_lens_Z))]
        bounds = paged.cu_seqlens_Z1.tolist()
        self.calls.append([end - start for start, end in pairwise(bounds)])
        if any(BOMB in text for text in texts):
            raise RuntimeError("the kernel gave up")
        rows = []
        for place in batch.logits_rows_L.tolist():
            row = int(torch.searchsorted(paged.cu_seqlens_Z1, place, right=True)) - 1
            end = int(paged.seq_lens_Z[row]) - (bounds[row + 1] - 1 - place)
            rows.append(mock_logits(texts[row][:end]))
        return RunnerOutput(torch.stack(rows), ids_M.to(torch.int16)[:, None, None])

    def _text(self, batch: ForwardBatch, row: int) -> list[int]:
        paged = batch.paged
        assert paged is not None
        size = paged.cache.block_size
        at = torch.arange(int(paged.seq_lens_Z[row]))
        slots = paged.block_tables_ZJ[row, at // size] * size + at % size
        [rows_SX] = paged.cache.read(0, slots)
        return [int(number) for number in rows_SX[:, 0].tolist()]


class MockSampler(BatchSampler):
    """The sampler, and a check that it is told the position and the tokens that a row has."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence_ids: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.broken: set[int] = set()

    def add(self, row: int, sampling, sequence_id, prompt_ids=(), processors=(), **more) -> None:
        super().add(row, sampling, sequence_id, prompt_ids, processors, **more)
        self.sequence_ids[row] = sequence_id
        self.lengths[row] = len(prompt_ids) + len(more["token_ids"])

    def accept(self, row: int, token_id: int) -> str | None:
        if row in self.lengths:
            self.lengths[row] += 1
        return super().accept(row, token_id)

    def rollback(self, row: int, count: int) -> None:
        self.lengths[row] -= count
        super().rollback(row, count)

    def remove(self, row: int) -> None:
        super().remove(row)
        del self.lengths[row], self.sequence_ids[row]
        self.broken.discard(row)

    def __call__(self, logits_LW: Tensor, rows, positions, drafts=None) -> Sampled:
        before: Counter[int] = Counter()
        for row, position in zip(rows, positions, strict=True):
            assert self.lengths[row] + before[row] == position
            before[row] += 1
        assert {row: n - 1 for row, n in before.items() if n > 1} == {
            row: len(drafted) for row, drafted in (drafts or {}).items()
        }
        if self.broken & set(rows):
            raise RuntimeError("the sampler gave up")
        return super().__call__(logits_LW, rows, positions, drafts)


def draw(logits_W: Tensor, request: Request, sample: int, tokens: list[int]) -> tuple[int, float]:
    """Draw the token behind a prompt and what was drawn."""
    sampler, prompt = BatchSampler(), len(request.prompt_ids)
    sampler.add(
        0,
        request.sampling,
        request.sequence_id + sample,
        request.prompt_ids,
        [] if request.processors is None else request.processors(),
        token_ids=tokens[prompt:],
    )
    sampled = sampler(logits_W[None], [0], [len(tokens)])
    return int(sampled.ids_L), float(sampled.logprobs_L)


class Told(NamedTuple):
    """All that a sequence was told."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None


def oracle(request: Request, sample: int = 0) -> Told:
    """Compute what one sample of a request is, alone, without cache or batch."""
    tokens, logprobs = list(request.prompt_ids), []
    while True:
        if BOMB in tokens or POISON in tokens:
            reason = "error"
            break
        token, logprob = draw(mock_logits(tokens), request, sample, tokens)
        tokens.append(token)
        logprobs.append(logprob)
        if token in request.stop_ids or len(logprobs) == request.max_new_tokens:
            reason = "stop" if token in request.stop_ids else "length"
            break
    return Told(tokens[len(request.prompt_ids) :], logprobs, reason)


def mock_engine(num_blocks: int = 64, *, proposer: Proposer | None = None, **settings) -> Engine:
    """An engine of 8 seats and blocks of 4 tokens, if nothing else is said."""
    config = EngineConfig(
        **(
            {"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32, "max_queue": 100}
            | settings
        )
    )
    cache = PagedCache([CacheSpec((1,))], num_blocks, config.block_size)
    limits = Limits(CONTEXT, VOCAB)
    return Engine(MockRunner(), cache, MockSampler(), config, limits, proposer=proposer)


class Log:
    """Collects what an engine says about each sequence, by (request number, sample)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.told: dict[tuple[int, int], Told] = {}
        self.errors: dict[tuple[int, int], str] = {}
        self.finished: list[tuple[int, int]] = []
        self.routes: dict[tuple[int, int], Tensor | None] = {}

    def step(self) -> None:
        """Do one step and check the engine's books."""
        for output in self.engine.step():
            key = output.request_id, output.sample
            told = self.told.setdefault(key, Told([], [], None))
            assert told.finish_reason is None, "an output after the last one"
            if output.token_id is not None:
                told.token_ids.append(output.token_id)
                told.logprobs.append(output.logprob)
            if output.error is not None:
                self.errors[key] = output.error
            self.routes[key] = output.routes_TYK
            if output.finish_reason is not None:
                self.finished.append(key)
            self.told[key] = told._replace(finish_reason=output.finish_reason)
        self.engine.check()

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_work:
            self.step()
