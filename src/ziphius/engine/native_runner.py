"""The runner that computes a step as one native program (`ops/native/program_builder.py`).

Every row has one order of sums: its cached rows, logits and routes are the same to the bit whatever
else is in the batch, however its prompt is cut into chunks, wherever its blocks lie and however
many threads there are.

Shapes: M tokens of the batch, L rows whose logits are wanted, Z sequences.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ziphius.engine.runner import RunnerOutput
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.lora import projections
from ziphius.models.lora_mixed import Adapter
from ziphius.models.model import Model
from ziphius.models.native import native
from ziphius.ops.native.program import NO_EXTRAS, PackedAdapter, Pages, StepExtras, StepTokens
from ziphius.ops.native.program_builder import NotNative, Program


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
        takes_adapters: batches may have some; they are kept in packed form, a second copy too, in
            which ranks are rounded up to 32, as long as their caller keeps them.
        dtype: what products multiply in (`Program`), by default that of the weights.
        program: of the model's present weights, which is not packed again; its dtype counts.

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
        takes_adapters: bool = False,
        dtype: torch.dtype | None = None,
        program: Program | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._pages = pages_of(cache)
        self._threads = threads
        self._exact = exact
        self._record_routes = record_routes
        self._return_hidden = return_hidden
        self._takes_adapters = takes_adapters
        self._adapters: dict[str, PackedAdapter] = {}
        self.program = program or write_program(model, dtype, takes_adapters=takes_adapters)
        """Written anew, over the same memory, by every `refresh`."""
        self._steady: tuple[ForwardBatch, StepTokens] | None = None
        """The last batch: an engine hands the same one out while sequences only decode."""

    def refresh(self) -> None:
        """Pack the model's weights anew, into the same memory.

        Raises:
            NotNative: the model was changed to one that is not native; this runner is at its end.
        """
        self.program = write_program(
            self._model,
            self.program.dtype,
            self.program.arena,
            takes_adapters=self._takes_adapters,
        )

    def __call__(
        self, batch: ForwardBatch, adapters: Mapping[str, Adapter] | None = None
    ) -> RunnerOutput:
        """Run one step.

        Args:
            batch: of the cache.
            adapters: by their id, those of the batch among them; an id always means the same one.

        Raises:
            ValueError: the batch is none of this cache, or says what cannot be; nothing was
                written.
        """
        output = self.program.run(
            self._tokens(batch),
            self._pages,
            self._extras(batch, adapters or {}),
            threads=self._threads or torch.get_num_threads(),
            exact=self._exact,
            record_routes=self._record_routes,
            return_hidden=self._return_hidden,
        )
        return RunnerOutput(output.logits_LW, output.routes_MYK, output.hidden_MD)

    def _tokens(self, batch: ForwardBatch) -> StepTokens:
        """Say which tokens a batch has; looked at once if it comes again."""
        if self._steady is not None and self._steady[0] is batch:
            return self._steady[1]
        paged = batch.paged
        if paged is None or paged.cache is not self._cache:
            raise ValueError("batch: a native runner takes flat batches of its own cache.")
        if batch.routes:
            raise ValueError("batch: a native runner does not replay routes.")
        if batch.positions_BT is not None and not torch.equal(
            batch.positions_BT[0], paged.positions_M()
        ):
            raise ValueError("batch: positions differ from those that the lengths give.")
        tokens = step_tokens(batch.input_ids_BT, paged, batch.logits_rows_L)
        # Positions may be changed in place.
        self._steady = (batch, tokens) if batch.positions_BT is None else None
        return tokens

    def _extras(self, batch: ForwardBatch, adapters: Mapping[str, Adapter]) -> StepExtras:
        if batch.adapters_Z is None:
            return NO_EXTRAS
        if not self._takes_adapters:
            raise ValueError("batch: this runner's program takes no adapters.")
        ids = [adapter_id for adapter_id in dict.fromkeys(batch.adapters_Z) if adapter_id]
        for adapter_id in ids:
            if adapter_id not in self._adapters:
                packed = self.program.pack_adapter(adapters[adapter_id])
                self._adapters[adapter_id] = packed
        # What the caller has let go of goes here too.
        self._adapters = {key: own for key, own in self._adapters.items() if key in adapters}
        places = {adapter_id: place for place, adapter_id in enumerate(ids)} | {"": -1}
        return StepExtras(
            adapters_Z=torch.tensor([places[adapter_id] for adapter_id in batch.adapters_Z]),
            adapters=[self._adapters[adapter_id] for adapter_id in ids],
        )

    @property
    def adapter_bytes(self) -> int:
        """Return the memory of adapters in packed form."""
        return sum(packed.size_bytes for packed in self._adapters.values())


def refuse_other_devices(model: Model) -> None:
    """Raise NotNative for a model whose modules compute elsewhere."""
    device = model.model.embed_tokens.weight.device
    if device.type != "cpu":
        raise NotNative(f"native programs run on a CPU, not on {device}")


def refuse_other_numbers(model: Model) -> None:
    """Raise NotNative for a model whose modules compute elsewhere, or in other numbers."""
    refuse_other_devices(model)
    if torch.is_autocast_enabled("cpu") and _autocast_rounds(model):
        raise NotNative("autocast rounds at every product, and a native program at none")


def _autocast_rounds(model: Model) -> bool:
    tied = model.model.embed_tokens.weight
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return any(weight.dtype == torch.float32 and weight is not tied for weight in weights)


def pages_of(cache: PagedCache) -> Pages:
    """Describe the memory of a cache to a program."""
    return Pages(cache.parts, cache.layouts, cache.dtype, cache.block_size)


def write_program(
    model: Model,
    dtype: torch.dtype | None = None,
    arena: Tensor | None = None,
    *,
    takes_adapters: bool = False,
) -> Program:
    """Write a model into a program and pack its weights.

    Args:
        model: in float32 or bfloat16.
        dtype: what products multiply in, by default that of the weights.
        arena: memory of an earlier program of the model, for the weights.
        takes_adapters: have the projections of blocks take adapters.

    Raises:
        NotNative: some part of the model has no native operation.
    """
    layers = projections(model) if takes_adapters else ()
    adaptable = {name: layer.weight for name, layer in layers}
    program = Program(model.model.embed_tokens.weight.dtype, dtype, adaptable)
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
