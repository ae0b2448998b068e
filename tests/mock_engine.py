"""An engine over a model that is a hash, for tests of all that is not the model.

The mock runner keeps nothing but the cache: it writes the new token ids into it, reads the whole of
every sequence back through the block tables, and hashes that to logits. So a wrong slot, table,
copy or a block that two sequences write to changes tokens, and `oracle` says what they should be.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts.proposer import Proposer
from ziphius.engine.engine import Engine, Limits
from ziphius.engine.runner import RunnerOutput
from ziphius.engine.sequence import Request
from ziphius.models.cache import CacheSpec, PagedCache
from ziphius.models.forward_batch import ForwardBatch
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.sampling import Sampler
from ziphius.ops.sampling_config import SamplingConfig

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
    logits[BOMB:] = -30.0
    return logits


class MockRunner:
    """See above; `calls` are the numbers of new tokens of every sequence, by step."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        paged = batch.paged
        assert paged is not None
        assert batch.positions_BT is not None
        assert batch.logits_rows_L is not None
        assert paged.block_tables_ZJ.is_contiguous()
        assert torch.equal(batch.positions_BT[0], paged.positions_M())
        assert len(set(paged.slot_mapping_M.tolist())) == batch.input_ids_BT.shape[1]
        ids_M = batch.input_ids_BT[0]
        paged.cache.write(0, paged.slot_mapping_M, ids_M.float()[:, None])
        texts = [self._text(batch, row) for row in range(len(paged.seq_lens_Z))]
        bounds = paged.cu_seqlens_Z1.tolist()
        self.calls.append([end - start for start, end in zip(bounds, bounds[1:], strict=False)])
        if any(BOMB in text for text in texts):
            raise RuntimeError("the kernel gave up")
        rows = []
        for place in batch.logits_rows_L.tolist():
            row = int(torch.searchsorted(paged.cu_seqlens_Z1, place, right=True)) - 1
            end = int(paged.seq_lens_Z[row]) - (bounds[row + 1] - 1 - place)
            rows.append(mock_logits(texts[row][:end]))
        return RunnerOutput(torch.stack(rows), paged.cache.parts[0][0][paged.slot_mapping_M, None].to(torch.int16))

    def _text(self, batch: ForwardBatch, row: int) -> list[int]:
        paged = batch.paged
        assert paged is not None
        size = paged.cache.block_size
        at = torch.arange(int(paged.seq_lens_Z[row]))
        slots = paged.block_tables_ZJ[row, at // size] * size + at % size
        [rows_SX] = paged.cache.read(0, slots)
        return [int(number) for number in rows_SX[:, 0].tolist()]


class Drawn(NamedTuple):
    ids_L: Tensor
    logprobs_L: Tensor


class MockSampler:
    """What `engine/sampler.py` does, row by row; knows which rows are taken.

    If `is_strict` it says that all rows have a state, and insists on hearing of every token before
    it draws the next.
    """

    def __init__(self, *, is_strict: bool = True) -> None:
        self.is_strict = is_strict
        self.rows: dict[int, tuple[SamplingConfig, int]] = {}
        self.heard: dict[int, list[int]] = {}

    def add(self, row: int, sampling: SamplingConfig, sequence_id: int, prompt_ids) -> None:
        assert row not in self.rows
        self.rows[row] = (sampling, sequence_id)
        self.heard[row] = list(prompt_ids)

    def remove(self, row: int) -> None:
        del self.rows[row], self.heard[row]

    def accept(self, row: int, token_id: int) -> None:
        self.heard[row].append(token_id)

    def is_stateful(self, row: int) -> bool:
        assert row in self.rows
        return self.is_strict

    def rollback(self, row: int, count: int) -> None:
        assert self.is_strict
        del self.heard[row][len(self.heard[row]) - count :]

    def __call__(self, logits_LW: Tensor, rows, positions) -> Drawn:
        drawn = [
            draw(logits_W, *self.rows[int(row)], int(position))
            for logits_W, row, position in zip(logits_LW, rows, positions, strict=True)
        ]
        for row, position in zip(rows, positions, strict=True):
            heard = len(self.heard[int(row)])
            assert heard == position if self.is_strict else heard <= position
        ids, logprobs = zip(*drawn, strict=True)
        return Drawn(torch.tensor(ids), torch.tensor(logprobs))


def draw(
    logits_W: Tensor, sampling: SamplingConfig, sequence_id: int, position: int
) -> tuple[int, float]:
    """Draw one token."""
    sampler = Sampler([sampling], [sequence_id])
    ids = sampler(logits_W[None], [position])
    logprob = token_logprobs(logits_W[None], ids, temperature=sampler.temperatures_B)
    return int(ids), float(logprob)


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
        token, logprob = draw(
            mock_logits(tokens), request.sampling, request.sequence_id + sample, len(tokens)
        )
        tokens.append(token)
        logprobs.append(logprob)
        if token in request.stop_ids or len(logprobs) == request.max_new_tokens:
            reason = "stop" if token in request.stop_ids else "length"
            break
    return Told(tokens[len(request.prompt_ids) :], logprobs, reason)


def mock_engine(
    num_blocks: int = 64,
    *,
    proposer: Proposer | None = None,
    is_strict: bool = True,
    **settings,
) -> Engine:
    """An engine of 8 seats and blocks of 4 tokens, if nothing else is said."""
    config = EngineConfig(
        **(
            {"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32, "max_queue": 100}
            | settings
        )
    )
    cache = PagedCache([CacheSpec((1,))], num_blocks, config.block_size)
    limits = Limits(CONTEXT, VOCAB)
    sampler = MockSampler(is_strict=is_strict)
    return Engine(MockRunner(), cache, sampler, config, limits, proposer=proposer)


class Log:
    """Collects what an engine says about each sequence, by (request number, sample)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.told: dict[tuple[int, int], Told] = {}
        self.errors: dict[tuple[int, int], str] = {}
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
            self.told[key] = told._replace(finish_reason=output.finish_reason)
        self.engine.check()

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_work:
            self.step()
