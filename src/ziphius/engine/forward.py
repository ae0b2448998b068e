"""The model's part of a step: logits of what is drawn from, scores of prompts, routes.

Shapes: Z sequences of a step, L rows that logits are of, W vocabulary, M tokens of a step, Y expert
layers, K experts per token, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ziphius.engine.drawing import told
from ziphius.engine.prompt_scores import score_prompt
from ziphius.engine.runner import Runner
from ziphius.engine.sequence import SequenceState
from ziphius.engine.step import Chunk, StepArrays
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch


class Forward:
    """Runs the steps of an engine, and keeps what else they say.

    Args:
        runner: of the model; another one may take its place between two steps.
        cache: that it reads and writes.
        device: where the runner wants ids and slots.
    """

    def __init__(self, runner: Runner, cache: PagedCache, device: torch.device) -> None:
        self.runner = runner
        self.keeps_routes = True
        """Of runners that record them."""
        self._cache = cache
        self._device = device
        self._routes: Tensor | None = None

    def __call__(
        self, batch: ForwardBatch, arrays: StepArrays, chunks: Sequence[Chunk]
    ) -> tuple[Tensor, Tensor | None]:
        """Run a step, and score prompts that want it.

        Args:
            batch: made of the arrays and chunks.
            arrays: of the sequences that decode.
            chunks: of prompts, behind them.

        Returns:
            Logits of the rows that are drawn from: those of the arrays, and each chunk's last; and
            the hidden states [M, D] of a runner that returns them.
        """
        output = self.runner(batch)
        if output.routes_MYK is not None and self.keeps_routes:
            self._keep_routes(batch, output.routes_MYK)
        logits_LW = output.logits_LW
        if any(chunk.sequence.wants_scores for chunk in chunks):
            logits_LW = _score_prompts(logits_LW, arrays.num_drawn, chunks)
        return logits_LW, output.hidden_MD

    def apart(
        self, sequences: Sequence[SequenceState], chunks: Sequence[Chunk]
    ) -> tuple[dict[SequenceState, Tensor], dict[SequenceState, str]]:
        """Run a step sequence by sequence.

        Returns:
            Logits [W] of each that the model computes, and what it raises on the others.
        """
        logits: dict[SequenceState, Tensor] = {}
        errors: dict[SequenceState, str] = {}
        for chunk in [*(Chunk(sequence, 1) for sequence in sequences), *chunks]:
            alone = StepArrays(self._cache, 1, self._device)
            try:
                logits_LW, _ = self(alone.batch([chunk]), alone, [chunk])
                logits[chunk.sequence] = logits_LW[0].clone()
            except Exception as error:
                errors[chunk.sequence] = told(error)
        return logits, errors

    def _keep_routes(self, batch: ForwardBatch, routes_MYK: Tensor) -> None:
        """Put the routes of a step down by slot: shared like the rows of the cache."""
        assert batch.paged is not None
        if self._routes is None:
            slots = self._cache.num_blocks * self._cache.block_size
            self._routes = routes_MYK.new_zeros(slots, *routes_MYK.shape[1:])
        self._routes[batch.paged.slot_mapping_M.cpu()] = routes_MYK

    def routes_of(self, sequence: SequenceState) -> Tensor | None:
        """Return the experts of all tokens that the model saw [T, Y, K], where they are kept."""
        if self._routes is None:
            return None
        blocks: Tensor = self._routes.unflatten(0, (self._cache.num_blocks, -1))
        return blocks[sequence.blocks].flatten(0, 1)[: sequence.num_computed].clone()

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the routes of blocks whose rows of the cache were copied."""
        if self._routes is not None:
            blocks = self._routes.unflatten(0, (self._cache.num_blocks, -1))
            blocks[list(targets)] = blocks[list(sources)]


def _score_prompts(logits_LW: Tensor, rows: int, chunks: Sequence[Chunk]) -> Tensor:
    """Score the tokens of chunks that want it; return the logits that are drawn from.

    Those are the first `rows`, and each chunk's last.
    """
    ends, place = list(range(rows)), rows
    for chunk in chunks:
        sequence, start = chunk.sequence, chunk.sequence.num_computed
        count = 1
        if sequence.wants_scores:
            count, top_k = chunk.num_tokens, sequence.request.prompt_logprobs
            ids = sequence.tokens[start + 1 : min(start + count + 1, sequence.num_prompt)]
            assert top_k is not None
            scores = score_prompt(logits_LW[place : place + len(ids)], ids, top_k)
            # After a preemption some are there already.
            sequence.prompt_scores += scores[len(sequence.prompt_scores) - start :]
        place += count
        ends.append(place - 1)
    return logits_LW[torch.tensor(ends, dtype=torch.int64, device=logits_LW.device)]
