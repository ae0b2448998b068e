"""The kernels of native programs: packing a weight, and running the operations of a whole step.

`program_builder.py` writes programs; `program.cpp` says how they run.

Shapes: M new tokens, Z sequences, J blocks of the longest sequence, L rows whose logits are wanted,
W vocabulary, D hidden, Y expert layers, K experts per token, I and O widths of a projection, in and
out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops.cache_rows import LARGEST, RowLayout
from ziphius.ops.native.binding import Kernel, address, optional_address, row_address
from ziphius.ops.native.program_records import UNIT, WORDS, padded

_PACK_WEIGHT = Kernel(
    "pack_weight",
    "const T* weight, T* target, int64_t outputs, int64_t inputs, int64_t row_stride, "
    "int64_t column_stride, int64_t apart",
)
_PROGRAM_RUN = Kernel(
    "program_run",
    "const int64_t* records, const uint8_t* arena, const T* table, const int64_t* strides, "
    "float* workspace, const int64_t* parts, const int64_t* shapes, const int64_t* ids, "
    "const int64_t* starts, const int64_t* lengths, const int64_t* slots, const int64_t* tables, "
    "const int64_t* wanted, float* logits, int16_t* routes, int64_t num_records, "
    "int64_t num_buffers, int64_t vocabulary, int64_t block_size, int64_t num_blocks, "
    "int64_t tokens, int64_t sequences, int64_t blocks, int64_t num_wanted, "
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
}


class StepTokens(NamedTuple):
    """The tokens of a step, as `models/forward_batch.py` says; all int64."""

    input_ids_M: Tensor
    cu_seqlens_Z1: Tensor
    seq_lens_Z: Tensor
    slot_mapping_M: Tensor
    block_tables_ZJ: Tensor
    logits_rows_L: Tensor


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


class PackedProgram:
    """What `program_run` runs, looked at once.

    Args:
        records: int64 [operations, WORDS].
        arena: uint8: packed weights, at the offsets that the records name.
        embeddings_WD: read where they lie; of the dtype of the packed weights.
        strides: int64: numbers of a row of each buffer.
        cache_layouts: rows that each layer writes to the cache.
        routes_shape: expert layers, and experts per token.
    """

    def __init__(
        self,
        records: Tensor,
        arena: Tensor,
        embeddings_WD: Tensor,
        strides: Tensor,
        cache_layouts: Mapping[int, tuple[RowLayout, ...]],
        routes_shape: tuple[int, int],
    ) -> None:
        self.arena = arena
        self.cache_layouts = cache_layouts
        self.routes_shape = routes_shape
        self.dtype = embeddings_WD.dtype
        self.vocabulary = len(embeddings_WD)
        self.row_numbers = int(strides.sum())
        self.sizes = len(records), len(strides), self.vocabulary
        self._kept = records, embeddings_WD, strides
        self.addresses = (
            address("records", records, torch.int64, (len(records), WORDS)),
            address("arena", arena, torch.uint8, arena.shape),
            address("embeddings", embeddings_WD, self.dtype, embeddings_WD.shape),
            address("strides", strides, torch.int64, strides.shape),
        )


def program_run(
    program: PackedProgram,
    tokens: StepTokens,
    pages: Pages,
    workspace: Tensor,
    logits_LW: Tensor,
    *,
    threads: int,
    exact: bool,
    record_routes: bool,
) -> Tensor | None:
    """Run a step: write the cache rows of the tokens and the logits of the wanted rows.

    Args:
        program: whose records are right: they are not looked at.
        tokens: of the step.
        pages: of a cache with the rows that the model's layers keep.
        workspace: float32, with room for a row of every buffer for each token.
        logits_LW: receives the logits, float32.
        threads: that share the work; no result depends on them.
        exact: leave out matrix units, whose order of sums is another one than that of vectors.
        record_routes: return the experts of every token.

    Returns:
        int16 [M, Y, K], or None.

    Raises:
        ValueError: the tokens name what is not there, or the cache is another one; nothing was
            written.
    """
    _refuse_other_rows(program, pages)
    count, wanted = tokens.input_ids_M.shape[0], tokens.logits_rows_L.shape[0]
    shape = (count, *program.routes_shape)
    routes_MYK = None
    if record_routes and program.routes_shape[0]:
        routes_MYK = torch.empty(shape, dtype=torch.int16)
    if workspace.numel() < count * program.row_numbers:
        raise ValueError(f"a workspace of {workspace.numel()} is too small for {count} tokens.")
    refusal = _PROGRAM_RUN.of(program.dtype, pages.dtype)(
        *program.addresses,
        address("workspace", workspace, torch.float32, workspace.shape),
        *pages.addresses,
        *_token_addresses(tokens),
        address("logits", logits_LW, torch.float32, (wanted, program.vocabulary)),
        optional_address("routes", routes_MYK, torch.int16, shape),
        *(*program.sizes, pages.block_size, pages.num_blocks, count),
        *(*tokens.block_tables_ZJ.shape, wanted, shape[1], threads, exact),
    )
    if refusal:
        values = {"vocabulary": program.vocabulary, "tokens": count, "num_blocks": pages.num_blocks}
        raise ValueError(f"{_REFUSALS[refusal].format(**values)}.")
    return routes_MYK


def _token_addresses(tokens: StepTokens) -> Iterator[int]:
    count, wanted = tokens.input_ids_M.shape[:1], tokens.logits_rows_L.shape[:1]
    sequences, blocks = tokens.block_tables_ZJ.shape
    shapes = (count, (sequences + 1,), (sequences,), count, (sequences, blocks), wanted)
    for name, tensor, shape in zip(tokens._fields, tokens, shapes, strict=True):
        yield address(name, tensor, torch.int64, shape)


def _refuse_other_rows(program: PackedProgram, pages: Pages) -> None:
    for layer, layouts in program.cache_layouts.items():
        found = pages.layouts[layer] if layer < len(pages.parts) else ()
        if found != layouts:
            own, its = (tuple(row.width for row in rows) for rows in (layouts, found))
            raise ValueError(f"layer {layer} keeps rows of {own}, the cache has {its}.")


def pack_weight(weight_OI: Tensor, arena: Tensor, offset: int, apart: int) -> None:
    """Write a matrix in panels of its outputs, or with `apart` 0 a row as it is.

    Args:
        weight_OI: rows or columns lie in one run each.
        arena: uint8; receives it.
        offset: where it begins.
        apart: every how many panels of the arena one is the matrix's.
    """
    outputs, inputs = weight_OI.shape
    if not apart:
        flat = arena[offset : offset + 4 * padded(inputs)].view(torch.float32)
        flat[inputs:] = 0
        flat[:inputs] = weight_OI[0]
        return
    panels = padded(outputs) // UNIT
    panel = padded(inputs) * UNIT * weight_OI.element_size()
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
    _PACK_WEIGHT.of(weight_OI.dtype)(
        place,
        address("arena", arena, torch.uint8, (arena.numel(),)) + offset,
        *(outputs, inputs, *strides, apart),
    )
