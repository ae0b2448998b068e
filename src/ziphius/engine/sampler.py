"""`BatchSampler`: the next token of every row of a batch whose rows come and go.

A row's tokens depend on its own settings, seed and logits alone (`ops/sampling.py`), so the caller
may run any rows beside each other, in any order, and several positions of one row at once.

Shapes: L rows of logits, P of them with processors, W vocabulary, R rows known.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.engine.processors import LogitsProcessor, ProcessorError, of_sampling
from ziphius.ops.logprobs import divided, top_logprobs
from ziphius.ops.sampling import Draws, RowSettings, sample_rows, sequence_keys
from ziphius.ops.sampling_config import SamplingConfig

NOT_FINITE = (
    "the model gave logits that are not finite: its weights are damaged, or overflow in this dtype "
    "(try float32 or bfloat16)"
)
NOTHING_LEFT = (
    "no token is left that this request may have: its grammar, bad words, bias or min_tokens "
    "contradict each other"
)


@dataclass(frozen=True)
class TopLogprobs:
    """The most likely tokens at one position, best first."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Sampled:
    """What one call drew; tensors on the CPU, in the order of its logits."""

    ids_L: Tensor
    """int64."""
    logprobs_L: Tensor
    """float32: of the model's distribution at the row's temperature (1 if greedy), before
    processors and filters."""
    top: Mapping[int, TopLogprobs]
    """By place in L, where a row wants them; of the same distribution."""
    failures: Mapping[int, str]
    """By place in L: why that row can have no token. Its id means nothing; the others stand."""


@dataclass
class _Row:
    processors: list[LogitsProcessor]
    top_k: int
    token_ids: list[int] = field(default_factory=list)

    def accept(self, token_id: int) -> str | None:
        if not self.processors:
            return None
        self.token_ids.append(token_id)
        reasons = [processor.accept(token_id) for processor in self.processors]
        return next((reason for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class _Selection:
    """What a list of rows comes to, kept for the next call with the same list."""

    rows: list[int]
    settings: RowSettings
    processed: list[int]
    """Places in L of rows with processors."""
    top: dict[int, list[int]]
    """Places in L by how many most likely tokens they want."""

    def of_processed(self, positions_L: Tensor) -> tuple[RowSettings, Tensor]:
        """Return settings and positions of the rows with processors."""
        places = torch.tensor(self.processed)
        return self.settings.of(places), positions_L[places]

    def without_choice(self, redrawn: Draws) -> dict[int, str]:
        """Say which rows with processors have no token left: nothing that is finite."""
        stuck = (~redrawn.logprobs_L.isfinite()).tolist()
        pairs = zip(self.processed, stuck, strict=True)
        return {place: NOTHING_LEFT for place, is_stuck in pairs if is_stuck}

    def merged(self, draws: Draws, redrawn: Draws, logits_LW: Tensor) -> Draws:
        """Put what processors let through in its places, as likely as the model itself holds it."""
        places_P = torch.tensor(self.processed, device=logits_LW.device)
        chosen_P = logits_LW[places_P].gather(1, redrawn.ids_L.unsqueeze(1))
        temperatures_P = self.settings.temperatures_L[self.processed].to(logits_LW.device)
        scaled_P = divided(chosen_P, temperatures_P).squeeze(1)
        draws.ids_L[places_P] = redrawn.ids_L
        draws.logprobs_L[places_P] = scaled_P - draws.normalizers_L[places_P]
        return draws

    def most_likely(self, draws: Draws, logits_LW: Tensor) -> dict[int, TopLogprobs]:
        """Find the most likely tokens for the rows that want them."""
        found: dict[int, TopLogprobs] = {}
        for top_k, places in self.top.items():
            # Rows that want equally many go together: among equal logits, which ones come depends
            # on how many do.
            places_P = torch.tensor(places, device=logits_LW.device)
            ids_L, logprobs_L, normalizers_L = (x[places_P] for x in draws)
            temperatures_P = self.settings.temperatures_L[places].to(logits_LW.device)
            scores = (ids_L, logprobs_L, normalizers_L)
            ids_PK, logprobs_PK = top_logprobs(logits_LW[places_P], temperatures_P, scores, top_k)
            rows = zip(places, ids_PK.tolist(), logprobs_PK.tolist(), strict=True)
            found |= {place: TopLogprobs(tuple(i), tuple(p)) for place, i, p in rows}
        return found


class BatchSampler:
    """Draw tokens for rows that are added and removed one at a time.

    Args:
        limit: tokens that may be drawn. Published embeddings are padded past those that the
            tokenizer knows; log-probabilities count them still. None: all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._rows: dict[int, _Row] = {}
        self._columns = _columns(8)
        self._selection: _Selection | None = None

    @property
    def rows(self) -> Set[int]:
        """Numbers that are taken."""
        return self._rows.keys()

    def add(
        self,
        row: int,
        sampling: SamplingConfig,
        sequence_id: int,
        prompt_ids: Sequence[int] = (),
        processors: Sequence[LogitsProcessor] = (),
        *,
        token_ids: Sequence[int] = (),
        logprobs: int = 0,
    ) -> None:
        """Take a row in.

        Args:
            row: its number, free, chosen by the caller.
            sampling: how its tokens are drawn; bias and penalties included.
            sequence_id: number of the sequence under its seed.
            prompt_ids: what `repetition_penalty` counts beside the answer.
            processors: its own, new ones; called after those of `sampling`.
            token_ids: what the sequence has behind its prompt already, as after a preemption.
            logprobs: most likely tokens wanted with each token.

        Raises:
            ConfigError: a bias names no token. After any error the number is still free.
        """
        assert row not in self._rows, "rows are removed before their number is used again"
        self._check_bias(sampling)
        found = _Row([*of_sampling(sampling, prompt_ids), *processors], logprobs)
        for token_id in token_ids:
            found.accept(token_id)
        [key] = sequence_keys([sampling.seed], [sequence_id]).view(np.int64)
        while row >= len(self._columns.keys_L):
            more = _columns(len(self._columns.keys_L))
            self._columns = RowSettings(*map(torch.cat, zip(self._columns, more, strict=True)))
        values = (key, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        for column, value in zip(self._columns, values, strict=True):
            column[row] = value
        self._selection = None
        # Last: whatever raised before, the number is still free.
        self._rows[row] = found

    def remove(self, row: int) -> None:
        """Forget a row."""
        del self._rows[row]
        self._selection = None

    def accept(self, row: int, token_id: int) -> str | None:
        """Note that the sequence has this token now; return why it ends with it, or None."""
        return self._rows[row].accept(token_id)

    def rollback(self, row: int, count: int) -> None:
        """Take the last accepted tokens back."""
        found = self._rows[row]
        if found.processors and count:
            del found.token_ids[-count:]
            for processor in found.processors:
                processor.rollback(count)

    def __call__(
        self,
        logits_LW: Tensor,
        rows: Sequence[int],
        positions: Sequence[int] | npt.NDArray[np.int64],
        drafts: Mapping[int, Sequence[int]] | None = None,
    ) -> Sampled:
        """Draw the tokens that will stand at these positions of these rows.

        A row may be there several times, at positions that follow each other: then `drafts` has the
        tokens that stand at all of them but the last, and each is drawn as if the drafts before it
        had been taken. Nothing is accepted by this call.

        Args:
            logits_LW: float32; not changed.
            rows: which row each is of.
            positions: of the tokens to draw.
            drafts: by row.
        """
        limit = logits_LW.size(-1) if self._limit is None else self._limit
        selection = self._select(rows)
        positions_L = torch.from_numpy(np.asarray(positions, np.int64))
        draws = sample_rows(logits_LW, selection.settings, positions_L, limit=limit)
        failures: dict[int, str] = {}
        if selection.processed:
            own_PW, failures = self._processed(logits_LW, rows, selection.processed, drafts or {})
            own = selection.of_processed(positions_L)
            redrawn = sample_rows(own_PW, *own, limit=limit)
            failures = {**selection.without_choice(redrawn), **failures}
            draws = selection.merged(draws, redrawn, logits_LW)
        ids_L, logprobs_L = draws.ids_L.cpu(), draws.logprobs_L.cpu()
        if not math.isfinite(logprobs_L.numpy().sum()):
            bad = (~logprobs_L.isfinite()).nonzero().flatten().tolist()
            failures |= dict.fromkeys(bad, NOT_FINITE)
        top = selection.most_likely(draws, logits_LW) if selection.top else {}
        return Sampled(ids_L, logprobs_L, top, failures)

    def _select(self, rows: Sequence[int]) -> _Selection:
        wanted = list(rows)
        if self._selection is not None and self._selection.rows == wanted:
            return self._selection
        found = [self._rows[row] for row in wanted]
        top: dict[int, list[int]] = {}
        for place, row in enumerate(found):
            if row.top_k:
                top.setdefault(row.top_k, []).append(place)
        processed = [place for place, row in enumerate(found) if row.processors]
        settings = self._columns.of(torch.tensor(wanted, dtype=torch.int64))
        self._selection = _Selection(wanted, settings, processed, top)
        return self._selection

    def _processed(
        self,
        logits_LW: Tensor,
        rows: Sequence[int],
        places: Sequence[int],
        drafts: Mapping[int, Sequence[int]],
    ) -> tuple[Tensor, dict[int, str]]:
        """Return these rows' logits as their processors leave them, [P, W], and whose failed."""
        own_PW = logits_LW[torch.tensor(places, device=logits_LW.device)]
        failures: dict[int, str] = {}
        taken: Counter[int] = Counter()
        try:
            self._apply(own_PW, rows, places, drafts, taken, failures)
        finally:
            # Also where a processor raises what it should not: the others' states stay right.
            for row, count in taken.items():
                self.rollback(row, count)
        return own_PW, failures

    def _apply(
        self,
        own_PW: Tensor,
        rows: Sequence[int],
        places: Sequence[int],
        drafts: Mapping[int, Sequence[int]],
        taken: Counter[int],
        failures: dict[int, str],
    ) -> None:
        """Run the processors; put down how many drafts each row has accepted for it."""
        last: dict[int, Tensor] = {}
        over: set[int] = set()
        for logits_W, place in zip(own_PW, places, strict=True):
            row = rows[place]
            if row in last and row not in over:
                draft = drafts[row][taken[row]]
                if last[row][draft] == -torch.inf:
                    over.add(row)  # it cannot be taken, so nothing behind it is read
                else:
                    self.accept(row, draft)
                    taken[row] += 1
            if row in over:
                continue
            last[row] = logits_W
            try:
                for processor in self._rows[row].processors:
                    processor(logits_W, self._rows[row].token_ids)
            except ProcessorError as error:
                failures[place] = str(error)
                over.add(row)

    def _check_bias(self, sampling: SamplingConfig) -> None:
        unknown = [
            i for i, _ in sampling.logit_bias if self._limit is not None and i >= self._limit
        ]
        if unknown:
            raise ConfigError(
                f"logit_bias names token {unknown[0]}, but the vocabulary has ids 0 to "
                f"{(self._limit or 0) - 1}"
            )


def _columns(rows: int) -> RowSettings:
    return RowSettings(
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(rows),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows, dtype=torch.float64),
        torch.zeros(rows),
    )
