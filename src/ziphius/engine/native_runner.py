"""The runner that computes a step as one native program (`ops/native/program_builder.py`).

Every row has one order of sums: its cached rows, logits and routes are the same to the bit whatever
else is in the batch, however its prompt is cut into chunks, wherever its blocks lie and however
many threads there are.

Shapes: M tokens of the batch, L rows whose logits are wanted, Z sequences.
"""

import torch
from torch import Tensor

from ziphius.engine.runner import RunnerOutput
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.model import Model
from ziphius.models.native import native
from ziphius.ops.native.program import Pages, StepTokens
from ziphius.ops.native.program_builder import Program


class NativeRunner:
    """Runs a native program of a model, whose weights it keeps in packed form.

    That is a second copy of them. Where the weights of the model change, also in place, `refresh`
    must be called before the next step: until then it runs with old ones, beside embeddings that
    are new, which alone are read where they lie. One step runs at a time; runners of other caches
    or models run beside it.

    Args:
        model: shared; its embeddings are read in place, all other weights are copied.
        cache: that every batch names; it must stay where it is.
        threads: that share the work of a step; by default as many as torch's operations.
        exact: leave out matrix units where a CPU has some: sums then go in the order of vectors.
        record_routes: return the experts of every token.
        return_hidden: return the hidden states of every token.

    Raises:
        NotNative: some part of the model has no native operation; the text says which.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        *,
        threads: int | None = None,
        exact: bool = False,
        record_routes: bool = False,
        return_hidden: bool = False,
    ) -> None:
        self._model = model
        self._cache = cache
        self._pages = Pages(cache.parts, cache.block_size)
        self._threads = threads
        self._exact = exact
        self._record_routes = record_routes
        self._return_hidden = return_hidden
        self._program = write_program(model)

    def refresh(self) -> None:
        """Pack the model's weights anew, into the same memory.

        Raises:
            NotNative: the model was changed to one that is not native; this runner is at its end.
        """
        self._program = write_program(self._model, self._program.arena)

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        """Run one step.

        Raises:
            ValueError: the batch is none of this cache, or says what cannot be; nothing was
                written.
        """
        paged = batch.paged
        if paged is None or paged.cache is not self._cache:
            raise ValueError("batch: a native runner takes flat batches of its own cache.")
        if batch.routes:
            raise ValueError("batch: a native runner does not replay routes.")
        if batch.positions_BT is not None and not torch.equal(
            batch.positions_BT[0], paged.positions_M()
        ):
            raise ValueError("batch: positions differ from those that the lengths give.")
        output = self._program.run(
            step_tokens(batch.input_ids_BT, paged, batch.logits_rows_L),
            self._pages,
            threads=self._threads or torch.get_num_threads(),
            exact=self._exact,
            record_routes=self._record_routes,
            return_hidden=self._return_hidden,
        )
        return RunnerOutput(output.logits_LW, output.routes_MYK, output.hidden_MD)


def write_program(model: Model, arena: Tensor | None = None) -> Program:
    """Write a model into a program and pack its weights.

    Args:
        model: in float32 or bfloat16.
        arena: memory of an earlier program of the model, for the weights.

    Raises:
        NotNative: some part of the model has no native operation.
    """
    program = Program(model.model.embed_tokens.weight.dtype)
    native(model).emit(program)
    program.pack(arena)
    return program


def step_tokens(
    input_ids_BT: Tensor, paged: PagedTokens, logits_rows_L: Tensor | None = None
) -> StepTokens:
    """Say which tokens a native program runs, as a flat batch says it; None: logits of all rows."""
    if input_ids_BT.shape[0] != 1:
        raise ValueError(f"batch: a flat batch has one row, not {input_ids_BT.shape[0]}.")
    if logits_rows_L is None:
        logits_rows_L = torch.arange(input_ids_BT.shape[1])
    return StepTokens(
        input_ids_BT[0],
        paged.cu_seqlens_Z1,
        paged.seq_lens_Z,
        paged.slot_mapping_M,
        paged.block_tables_ZJ,
        logits_rows_L,
    )
