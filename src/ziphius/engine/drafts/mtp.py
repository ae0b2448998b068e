"""Drafts of the model's own MTP layer: DeepSeek-V3 report (arXiv 2412.19437), sections 2.2, 5.4.3.

The layer makes a row of its cache out of a token and the trunk's hidden state of the token before
it. That row lies in the slot of the token, so it hangs on the tokens up to there as all other rows
in that slot do, and shared blocks stay right. Token 0 has none, and neither has a token that
follows a prefix found in the index, whose hidden state nobody kept: the layer's sequences are the
slots that have rows.

Shapes: M tokens, L rows that are drawn from, D hidden_size, W vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.engine.drafts.proposer import Computed, Draw
from ziphius.engine.drafts.slots import SlotMarks, slot_batch
from ziphius.engine.native_runner import pages_of, refuse_other_numbers, step_tokens
from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Ints
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model, Output
from ziphius.models.native import native
from ziphius.ops.native.program import StepExtras
from ziphius.ops.native.program_builder import NotNative, Program


class MtpRunner(Protocol):
    """Runs the MTP layer over tokens and the hidden states before them."""

    def __call__(self, batch: ForwardBatch, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [L, W], float32, and hidden states [L, D] of the rows that are wanted."""
        ...


class TorchMtpRunner:
    """Runs the MTP layer of the module tree.

    Args:
        model: shared with the target's runner.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layer once."""
        # A native program returns float32 whatever the weights are.
        hidden_MD = hidden_MD.to(self._model.model.embed_tokens.weight.dtype)
        before = Output(hidden_MD[None], self._model.context(batch))
        hidden_BTD = self._model.draft(1, before.hidden_BTD, batch.input_ids_BT, before)
        hidden_LD = hidden_BTD[0][batch.logits_rows_L]
        return self._model.logits(hidden_LD).float(), hidden_LD


class NativeMtpRunner:
    """Runs the MTP layer as a native program, which has a copy of the head of its own.

    Args:
        model: shared with the target's runner.
        cache: the target's, which must stay where it is.

    Raises:
        NotNative: some part of the layer has no native operation.
    """

    def __init__(self, model: Model, cache: PagedCache) -> None:
        refuse_other_numbers(model)
        self._parts = cache.parts
        by_slot = cache.by_slot()
        self._pages = pages_of(by_slot)
        self._program = Program(model.model.embed_tokens.weight.dtype)
        native(model).emit_draft(self._program, 1)
        self._program.pack()

    def __call__(self, batch: ForwardBatch, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layer once."""
        paged, positions_BT, rows_L = batch.paged, batch.positions_BT, batch.logits_rows_L
        assert paged is not None
        assert positions_BT is not None
        assert rows_L is not None
        assert paged.cache.parts is self._parts
        output = self._program.run(
            step_tokens(batch.input_ids_BT, paged, rows_L),
            self._pages,
            StepExtras(positions_M=positions_BT[0], received_MD=hidden_MD.float().contiguous()),
            threads=torch.get_num_threads(),
            return_hidden=True,
        )
        assert output.hidden_MD is not None
        return output.logits_LW, output.hidden_MD[rows_L]


def build_mtp_runner(model: Model, cache: PagedCache) -> MtpRunner:
    """Return the native program of the model's first MTP layer; where it has none, the modules.

    Raises:
        ConfigError: the model has no MTP layer.
    """
    if not model.model.mtp_layers:
        raise ConfigError(
            "this model has no MTP layer to draft with (num_nextn_predict_layers is 0): choose "
            "another method"
        )
    try:
        return NativeMtpRunner(model, cache)
    except NotNative:
        return TorchMtpRunner(model)


class MtpProposer:
    """Feeds the MTP layer what the trunk leaves, and its own hidden states for further tokens.

    Args:
        runner: of the layer.
        cache: the target's: the layer's rows are a part of it.
        device: of the model.
    """

    needs_hidden = True

    def __init__(
        self, runner: MtpRunner, cache: PagedCache, *, device: torch.device | None = None
    ) -> None:
        self._runner = runner
        self._by_slot = cache.by_slot()
        self._marks = SlotMarks(cache.num_blocks, cache.block_size)
        self._device = device or torch.device("cpu")
        self._tables: dict[SequenceState, Ints] = {}
        """Slots of each sequence that hold rows of the layer."""
        self._pending: list[Computed] = []
        self._hidden_MD: Tensor | None = None

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        """Read what the last step has computed, and return drafts of the sequences it was of."""
        wanted = {s: n for s, n in zip(sequences, lengths, strict=True) if n}
        # Where nobody drafts, single tokens are not worth a pass: they are left out for good.
        pending = [
            one
            for one in self._pending
            if one.sequence in self._tables and (wanted or one.start < one.sequence.num_prompt)
        ]
        self._pending = []
        drafts: dict[SequenceState, list[int]] = {}
        if pending:
            ready = [one.sequence for one in pending if one.sequence in wanted]
            logits_LW, hidden_LD = self._read(pending, ready)
            if ready:
                drafts = self._go_on(ready, wanted, logits_LW, hidden_LD, draw)
        self._hidden_MD = None
        return [drafts.get(sequence, []) for sequence in sequences]

    def _read(
        self, pending: Sequence[Computed], ready: Sequence[SequenceState]
    ) -> tuple[Tensor, Tensor]:
        """Make the rows of the tokens behind those just computed; return what `ready` ends with."""
        assert self._hidden_MD is not None
        ids: list[int] = []
        rows, positions = [], []
        for one in pending:
            start, end = one.start, one.start + one.kept
            ids += one.sequence.tokens[start + 1 : end + 1]
            slots = self._marks.slots(one.sequence, start + 1, end + 1)
            self._marks.set(slots, held=True)
            self._tables[one.sequence] = np.concatenate([self._tables[one.sequence], slots])
            rows.append(np.arange(one.first_row, one.first_row + one.kept))
            positions.append(np.arange(start, end))
        batch = slot_batch(
            self._by_slot,
            ids,
            [self._tables[one.sequence] for one in pending],
            [one.kept for one in pending],
            self._device,
            np.concatenate(positions),
        )
        wanted = set(ready)
        ends = torch.tensor([one.sequence in wanted for one in pending], device=self._device)
        assert batch.logits_rows_L is not None
        batch = replace(batch, logits_rows_L=batch.logits_rows_L[ends])
        rows_M = torch.from_numpy(np.concatenate(rows)).to(self._hidden_MD.device)
        return self._runner(batch, self._hidden_MD[rows_M])

    def _go_on(
        self,
        sequences: list[SequenceState],
        wanted: dict[SequenceState, int],
        logits_LW: Tensor,
        hidden_LD: Tensor,
        draw: Draw,
    ) -> dict[SequenceState, list[int]]:
        """Draw the first drafts, and read each one to draw the next."""
        drafts: dict[SequenceState, list[int]] = {sequence: [] for sequence in sequences}
        for place in range(max(wanted[sequence] for sequence in sequences)):
            if place:
                more = [wanted[sequence] > place for sequence in sequences]
                hidden_LD = hidden_LD[torch.tensor(more, device=hidden_LD.device)]
                sequences = [s for s, is_more in zip(sequences, more, strict=True) if is_more]
                logits_LW, hidden_LD = self._read_drafts(sequences, drafts, hidden_LD)
            drawn = draw(logits_LW, sequences, place)
            for sequence, token_id in zip(sequences, drawn, strict=True):
                drafts[sequence].append(token_id)
        return drafts

    def _read_drafts(
        self,
        sequences: Sequence[SequenceState],
        drafts: dict[SequenceState, list[int]],
        hidden_LD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Make rows of the last drafts; they are made again from the trunk's, if accepted."""
        tables, positions = [], []
        for sequence in sequences:
            end = len(sequence.tokens)
            ahead = self._marks.slots(sequence, end, end + len(drafts[sequence]))
            tables.append(np.concatenate([self._tables[sequence], ahead]))
            positions.append(end + len(ahead) - 2)
        batch = slot_batch(
            self._by_slot,
            [drafts[sequence][-1] for sequence in sequences],
            tables,
            [1] * len(sequences),
            self._device,
            np.array(positions),
        )
        return self._runner(batch, hidden_LD)

    def overwrite(self, slots_M: Ints) -> None:
        """Forget the rows of the texts that were in these slots."""
        self._marks.set(slots_M, held=False)

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        """Keep the hidden states of a step for `propose`, and find the rows of new sequences."""
        # Without hidden states, after a step that had to be computed again, rows are left out.
        self._pending, self._hidden_MD = list(computed) if hidden_MD is not None else [], hidden_MD
        for one in computed:
            table = self._tables.get(one.sequence)
            if table is None:
                slots = self._marks.slots(one.sequence, 1, max(1, one.start))
                self._tables[one.sequence] = slots[self._marks.are_held(slots)]
                continue
            first = self._marks.slots(one.sequence, one.start, one.start + 1)
            if np.array_equal(table[-1:], first):
                # Made before the target's row of the same token, out of what is still true.
                self._marks.set(first, held=True)

    def forget(self, sequence: SequenceState) -> None:
        """Drop what is known of a sequence; the rows stay, for others with the same text."""
        self._tables.pop(sequence, None)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Follow a copy: the rows were copied with the target's."""
        self._marks.copy_blocks(sources, targets)
