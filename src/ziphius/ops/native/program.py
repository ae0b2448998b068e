"""The kernels of native programs: packing a weight, and running the operations of a whole step.

`program_builder.py` writes programs; `program.cpp` says how they run.

Shapes: M new tokens, Z sequences, J blocks of the longest sequence, L rows whose logits are wanted,
W vocabulary, D hidden, X layers, Y expert layers, K experts per token, A adapters, I and O widths
of a projection, in and out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops.cache_rows import LARGEST, RowLayout
from ziphius.ops.native.binding import Kernel, address, optional_address, row_address
from ziphius.ops.native.program_records import UNIT, WORDS, padded

_PACK_WEIGHT = Kernel(
    "pack_weight",
    "const T* weight, U* target, int64_t outputs, int64_t inputs, int64_t row_stride, "
    "int64_t column_stride, int64_t apart",
    kinds=("ff", "fb", "bb"),
)
_PROGRAM_RUN = Kernel(
    "program_run",
    "const int64_t* records, const uint8_t* arena, const void* table, const int64_t* strides, "
    "float* workspace, const int64_t* parts, const int64_t* shapes, const int64_t* ids, "
    "const int64_t* starts, const int64_t* lengths, const int64_t* slots, const int64_t* tables, "
    "const int64_t* wanted, const int64_t* angle_positions, const float* received, "
    "const int64_t* adapters_of, const int64_t* adapters, const int16_t* replayed, float* logits, "
    "int16_t* routes, float* hidden, float* streams, int64_t num_records, int64_t num_buffers, "
    "int64_t vocabulary, int64_t block_size, int64_t num_blocks, int64_t tokens, "
    "int64_t sequences, int64_t blocks, int64_t num_wanted, int64_t num_adapters, "
    "int64_t route_layers, int64_t threads, int exact",
    kinds=("ff", "fb", "bf", "bb", "fi", "bi", "fe", "be"),
    returns="int64_t",
)
_REFUSALS = {
    -1: "input_ids: a token id is not one of the vocabulary of {vocabulary}",
    -2: "cu_seqlens: they do not rise from 0 to the {tokens} tokens, one or more a sequence",
    -3: "seq_lens: a sequence is shorter than its new tokens, or longer than its block table",
    -4: "block_tables: a block is not one of the cache's {num_blocks}",
    -5: "slot_mapping: a slot is not where the block table has the token, or is written twice",
    -6: "logits_rows: a row is not one of the {tokens} tokens",
    -7: "adapters: a sequence has one that is not among those given",
    -8: "replayed: a route names an expert that its layer does not have",
}


class StepTokens(NamedTuple):
    """The tokens of a step, as `models/forward_batch.py` says; all int64."""

    input_ids_M: Tensor
    cu_seqlens_Z1: Tensor
    seq_lens_Z: Tensor
    slot_mapping_M: Tensor
    block_tables_ZJ: Tensor
    logits_rows_L: Tensor


class PackedAdapter:
    """The matrices of an adapter as a program reads them, looked at once.

    Args:
        arena: uint8: the packed matrices.
        parts: int64 [slots, 4]: the fields of an `AdapterPart` of program.h for each slot.
    """

    def __init__(self, arena: Tensor, parts: Tensor) -> None:
        self.num_slots = len(parts)
        self.size_bytes = arena.nbytes
        self._kept = arena, parts
        self.addresses = (
            address("arena of an adapter", arena, torch.uint8, arena.shape),
            address("parts of an adapter", parts, torch.int64, (self.num_slots, 4)),
        )


class StepExtras(NamedTuple):
    """What only some programs or steps have."""

    positions_M: Tensor | None = None
    """int64: what tokens are rotated by, where it is not their place in their sequence."""
    received_MD: Tensor | None = None
    """float32: rows for a program that begins with some of its caller's."""
    adapters_Z: Tensor | None = None
    """int64: adapter of each sequence, its place among `adapters`, -1 for none."""
    adapters: Sequence[PackedAdapter] = ()
    replayed_MYK: Tensor | None = None
    """int16: the experts that tokens are sent to, instead of those that gates would choose; their
    weights are still the gates'."""


NO_EXTRAS = StepExtras()


class Pages:
    """The memory of a cache of blocks, looked at once.

    Args:
        parts: of each layer one or two tensors [num_blocks * block_size, width]: of `dtype`, those
            of 8 bits of bytes.
        layouts: of the rows of each part.
        dtype: of the numbers that rows are kept in.
        block_size: slots of a block.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Tensor]],
        layouts: Sequence[Sequence[RowLayout]],
        dtype: torch.dtype,
        block_size: int,
    ) -> None:
        self.parts = [tuple(layer) for layer in parts]
        self.layouts = [tuple(layer) for layer in layouts]
        self.dtype = dtype
        self.block_size = block_size
        slots = parts[0][0].shape[0]
        self.num_blocks = slots // block_size
        has_scales = dtype in LARGEST
        addresses = torch.zeros(len(parts), 2, dtype=torch.int64)
        shapes = torch.zeros(len(parts), 2, 4, dtype=torch.int64)
        for layer, tensors in enumerate(self.parts):
            for index, (part, row) in enumerate(zip(tensors, self.layouts[layer], strict=True)):
                stride = row.size_bytes if has_scales else row.width
                part_dtype = torch.uint8 if has_scales else dtype
                place = address("part of the cache", part, part_dtype, (slots, stride))
                addresses[layer, index] = place
                described = (stride, row.width, row.scale_width, row.kept)
                shapes[layer, index] = torch.tensor(described)
        self._kept = addresses, shapes
        self.addresses = tuple(
            address("table of the cache", x, torch.int64, x.shape) for x in self._kept
        )


class ProgramOutput(NamedTuple):
    """What a step leaves beside the rows in the cache."""

    logits_LW: Tensor
    """float32, of the wanted rows."""
    routes_MYK: Tensor | None = None
    """int16: the experts of every token."""
    hidden_MD: Tensor | None = None
    """float32, of every token: behind the final norm."""
    streams_XMD: Tensor | None = None
    """float32, of every token: the residual stream behind each layer."""


class StepCall(NamedTuple):
    """A step, and what is wanted of it."""

    tokens: StepTokens
    pages: Pages
    extras: StepExtras
    threads: int
    """That share the work; no result depends on them."""
    exact: bool
    """Leave out matrix units, whose order of sums is another one than that of vectors."""
    record_routes: bool
    return_hidden: bool
    return_streams: bool

    def is_same(self, other: "StepCall") -> bool:
        """Tell whether the other asks for the same, of the very same tensors."""
        return all(map(is_, self[:3], other[:3])) and self[3:] == other[3:]


class PackedProgram:
    """What `program_run` runs, looked at once.

    Args:
        records: int64 [operations, WORDS].
        arena: uint8: packed weights, at the offsets that the records name.
        embeddings_WD: read where they lie; float32 if the records say so, else as packed weights.
        dtype: of the packed weights.
        strides: int64: numbers of a row of each buffer.
        cache_layouts: rows that each layer writes to the cache.
        routes_shape: expert layers, and experts per token.
        stream_shape: layers, and hidden size.
        received_width: of the rows that a caller brings, 0 for none.
        num_slots: that adapters have something for.
    """

    def __init__(
        self,
        records: Tensor,
        arena: Tensor,
        embeddings_WD: Tensor,
        dtype: torch.dtype,
        strides: Tensor,
        cache_layouts: Mapping[int, tuple[RowLayout, ...]],
        routes_shape: tuple[int, int],
        stream_shape: tuple[int, int],
        received_width: int,
        num_slots: int,
    ) -> None:
        self.arena = arena
        self.cache_layouts = cache_layouts
        self.routes_shape = routes_shape
        self.stream_shape = stream_shape
        self.received_width = received_width
        self.num_slots = num_slots
        self.dtype = dtype
        self.vocabulary = len(embeddings_WD)
        self.row_numbers = int(strides.sum())
        self.sizes = len(records), len(strides), self.vocabulary
        self._kept = records, embeddings_WD, strides
        self.addresses = (
            address("records", records, torch.int64, (len(records), WORDS)),
            address("arena", arena, torch.uint8, arena.shape),
            address("embeddings", embeddings_WD, embeddings_WD.dtype, embeddings_WD.shape),
            address("strides", strides, torch.int64, strides.shape),
        )


class BoundStep:
    """A step that is ready to run, again and again; what its addresses are of lives as long."""

    def __init__(
        self,
        run: Callable[..., int],
        arguments: tuple[int | None, ...],
        values: Mapping[str, int],
        kept: object,
    ) -> None:
        self._run, self._arguments, self._values, self._kept = run, arguments, values, kept

    def __call__(self) -> None:
        """Run it, on what its tensors hold now.

        Raises:
            ValueError: the tokens name what is not there; nothing was written.
        """
        if refusal := self._run(*self._arguments):
            raise ValueError(f"{_REFUSALS[refusal].format(**self._values)}.")


def bind_step(
    program: PackedProgram, call: StepCall, workspace: Tensor, output: ProgramOutput
) -> BoundStep:
    """Look at the tensors of a step; return what runs it on what they hold then.

    It writes the cache rows of the tokens and fills the output. All tensors must stay where they
    are.

    Args:
        program: whose records are right: they are not looked at.
        call: its pages are of a cache with the rows that the model's layers keep.
        workspace: float32, with room for a row of every buffer for each token.
        output: its tensors receive the results.

    Raises:
        ValueError: a tensor is none of such a step, or the cache is another one.
    """
    tokens, pages, extras = call.tokens, call.pages, call.extras
    _refuse_other_rows(program, pages)
    count, wanted = tokens.input_ids_M.shape[0], tokens.logits_rows_L.shape[0]
    routes_shape = (count, *program.routes_shape)
    layers, width = program.stream_shape
    places = [adapter.addresses for adapter in extras.adapters]
    table_A2 = torch.tensor(places, dtype=torch.int64) if places else None
    if workspace.numel() < count * program.row_numbers:
        raise ValueError(f"a workspace of {workspace.numel()} is too small for {count} tokens.")
    arguments = (
        *program.addresses,
        address("workspace", workspace, torch.float32, workspace.shape),
        *pages.addresses,
        *_token_addresses(tokens),
        *_extra_addresses(program, extras, table_A2, count, len(tokens.seq_lens_Z)),
        optional_address("replayed", extras.replayed_MYK, torch.int16, routes_shape),
        address("logits", output.logits_LW, torch.float32, (wanted, program.vocabulary)),
        optional_address("routes", output.routes_MYK, torch.int16, routes_shape),
        optional_address("hidden", output.hidden_MD, torch.float32, (count, width)),
        optional_address("streams", output.streams_XMD, torch.float32, (layers, count, width)),
        *(*program.sizes, pages.block_size, pages.num_blocks, count),
        *(*tokens.block_tables_ZJ.shape, wanted, len(extras.adapters)),
        *(routes_shape[1], call.threads, call.exact),
    )
    values = {"vocabulary": program.vocabulary, "tokens": count, "num_blocks": pages.num_blocks}
    kept = program, call, workspace, output, table_A2
    return BoundStep(_PROGRAM_RUN.of(program.dtype, pages.dtype), arguments, values, kept)


def _token_addresses(tokens: StepTokens) -> Iterator[int]:
    count, wanted = tokens.input_ids_M.shape[:1], tokens.logits_rows_L.shape[:1]
    sequences, blocks = tokens.block_tables_ZJ.shape
    shapes = (count, (sequences + 1,), (sequences,), count, (sequences, blocks), wanted)
    for name, tensor, shape in zip(tokens._fields, tokens, shapes, strict=True):
        yield address(name, tensor, torch.int64, shape)


def _extra_addresses(
    program: PackedProgram,
    extras: StepExtras,
    table_A2: Tensor | None,
    count: int,
    sequences: int,
) -> Iterator[int | None]:
    if (extras.received_MD is None) != (not program.received_width):
        raise ValueError("received rows: a program that begins with some needs them, and no other.")
    if any(adapter.num_slots != program.num_slots for adapter in extras.adapters):
        raise ValueError("an adapter was packed for another program.")
    yield optional_address("positions", extras.positions_M, torch.int64, (count,))
    width = program.received_width
    yield optional_address("received rows", extras.received_MD, torch.float32, (count, width))
    yield optional_address("adapters", extras.adapters_Z, torch.int64, (sequences,))
    yield optional_address("adapters", table_A2, torch.int64, (len(extras.adapters), 2))


def _refuse_other_rows(program: PackedProgram, pages: Pages) -> None:
    for layer, layouts in program.cache_layouts.items():
        found = pages.layouts[layer] if layer < len(pages.parts) else ()
        if found != layouts:
            own, its = (tuple(row.width for row in rows) for rows in (layouts, found))
            raise ValueError(f"layer {layer} keeps rows of {own}, the cache has {its}.")


def pack_weight(
    weight_OI: Tensor, arena: Tensor, offset: int, apart: int, dtype: torch.dtype | None = None
) -> None:
    """Write a matrix in panels of its outputs, or with `apart` 0 a row as it is.

    Args:
        weight_OI: rows or columns lie in one run each.
        arena: uint8; receives it.
        offset: where it begins.
        apart: every how many panels of the arena one is the matrix's.
        dtype: to round to, by default the matrix's own.
    """
    dtype = dtype or weight_OI.dtype
    outputs, inputs = weight_OI.shape
    if not apart:
        flat = arena[offset : offset + 4 * padded(inputs)].view(torch.float32)
        flat[inputs:] = 0
        flat[:inputs] = weight_OI[0]
        return
    panels = padded(outputs) // UNIT
    panel = padded(inputs) * UNIT * dtype.itemsize
    end = offset + ((panels - 1) * apart + 1) * panel
    if outputs and end > arena.numel():
        raise ValueError(f"a packed weight ends at byte {end} of an arena of {arena.numel()}.")
    strides = weight_OI.stride()
    if strides[1] == 1:
        place, row = row_address("weight", weight_OI, weight_OI.dtype, weight_OI.shape)
        strides = (row, 1)
    else:
        place, column = row_address("weight", weight_OI.t(), weight_OI.dtype, (inputs, outputs))
        strides = (1, column)
    _PACK_WEIGHT.of(weight_OI.dtype, dtype)(
        place,
        address("arena", arena, torch.uint8, (arena.numel(),)) + offset,
        *(outputs, inputs, *strides, apart),
    )
