"""A native program: a model's layers as a flat list of operations, run whole by `program.cpp`.

Modules write it: each has a method `emit` beside its `forward`, which appends the operations that
compute the same. Weights are packed once, in `pack`, as products read them; a program has no part
in what a model's weights become afterwards, and is written anew where they change.

Shapes: M new tokens, Z sequences, J blocks of the longest sequence, L rows whose logits are wanted,
W vocabulary, Y expert layers, K experts per token, I and O widths of a projection, in and out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.native.binding import Kernel, address, optional_address, own_address, row_address
from ziphius.ops.native.program_records import (
    NONE,
    UNIT,
    Embed,
    Into,
    Norm,
    Operation,
    Place,
    Project,
    as_table,
    padded,
)

_PACK_WEIGHT = Kernel(
    "pack_weight",
    "const T* weight, T* target, int64_t outputs, int64_t inputs, int64_t row_stride, "
    "int64_t column_stride, int64_t apart",
)
_PROGRAM_RUN = Kernel(
    "program_run",
    "const int64_t* records, const uint8_t* arena, const T* table, const int64_t* strides, "
    "float* workspace, const int64_t* parts, const int64_t* part_widths, const int64_t* ids, "
    "const int64_t* starts, const int64_t* lengths, const int64_t* slots, const int64_t* tables, "
    "const int64_t* wanted, float* logits, int16_t* routes, int64_t num_records, "
    "int64_t num_buffers, int64_t vocabulary, int64_t block_size, int64_t num_blocks, "
    "int64_t tokens, int64_t sequences, int64_t blocks, int64_t num_wanted, "
    "int64_t route_layers, int64_t threads, int exact",
    kinds=("ff", "fb", "bf", "bb"),
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


class NotNative(Exception):
    """A model has a part that no native operation computes; the text says which."""


class Projection(NamedTuple):
    """What a linear layer multiplies by, and adds."""

    weight_OI: Tensor
    bias_O: Tensor | None = None


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
        parts: of each layer one or two tensors [num_blocks * block_size, width], all of one dtype.
        block_size: slots of a block.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]], block_size: int) -> None:
        self.parts = [tuple(layer) for layer in parts]
        self.dtype = parts[0][0].dtype
        self.block_size = block_size
        slots = parts[0][0].shape[0]
        self.num_blocks = slots // block_size
        table = torch.zeros(len(parts), 2, 2, dtype=torch.int64)
        for layer, tensors in enumerate(self.parts):
            for index, part in enumerate(tensors):
                shape = (slots, part.shape[1])
                table[layer, index, 0] = address("part of the cache", part, self.dtype, shape)
                table[layer, index, 1] = part.shape[1]
        self.addresses, self.widths = table.unbind(-1)
        self.addresses, self.widths = self.addresses.contiguous(), self.widths.contiguous()


@dataclass(frozen=True)
class _Packing:
    """A weight to be packed: where it begins in the arena, and every how many panels it has one."""

    weight_OI: Tensor
    offset: int
    apart: int = 1


class Program:
    """Collects operations and weights from modules, then runs them.

    Args:
        dtype: of the weights, and what products multiply in: float32 or bfloat16.

    Raises:
        NotNative: kernels do not run here, or not in this dtype.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if not native.serves():
            raise NotNative(f"native kernels are {native.status()}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise NotNative(f"weights are {dtype}, not float32 or bfloat16")
        self.dtype = dtype
        self.window, self.sinks = 0, 0
        """What attention sees, beside the sinks: that many last tokens, 0 for all."""
        self.route_layers, self.top_k = 0, 0
        self.cache_widths: dict[int, tuple[int, ...]] = {}
        """What each layer writes to the cache."""
        self._operations: list[Operation] = []
        self._buffers: dict[str, int] = {}
        self._strides: list[int] = []
        self._packings: list[_Packing] = []
        self._size = 0
        self._lock = Lock()
        self._workspace = torch.empty(0)
        self._logits_LW = torch.empty(0)
        self._arena = torch.empty(0, dtype=torch.uint8)

    def add(self, operation: Operation) -> None:
        """Append an operation."""
        self._operations.append(operation)

    def place(self, name: str, *widths: int) -> list[Place]:
        """Return where columns of these widths begin in the buffer of that name.

        Layers that come one after the other share a buffer by its name; what stands in it lasts
        until the next operation that writes there.
        """
        index = self._buffers.setdefault(name, len(self._buffers))
        self._strides += [0] * (len(self._buffers) - len(self._strides))
        columns = [0]
        for width in widths:
            columns.append(columns[-1] + padded(width))
        self._strides[index] = max(self._strides[index], columns[-1])
        return [Place(index, column) for column in columns[:-1]]

    def vector(self, x: Tensor) -> int:
        """Keep a small tensor in float32, and return where."""
        offset = self._reserve(4 * padded(x.numel()))
        self._packings.append(_Packing(x.detach().float().reshape(1, -1), offset, apart=0))
        return offset

    def weights(self, *weights_OI: Tensor, dtype: torch.dtype | None = None) -> int:
        """Keep matrices one behind the other, each in panels, and return where the first is."""
        dtype = dtype or self.dtype
        first = self._size
        for weight_OI in weights_OI:
            if weight_OI.dtype != dtype:
                raise NotNative(f"a weight is {weight_OI.dtype} among others in {dtype}")
            offset = self._reserve(_packed_bytes(weight_OI))
            self._packings.append(_Packing(weight_OI.detach(), offset))
        return first

    def weight_pairs(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Keep pairs of gate and up projection, their panels alternating; return where."""
        first = self._size
        for gate_FD, up_FD in pairs:
            offset = self._reserve(_packed_bytes(gate_FD) + _packed_bytes(up_FD))
            panel = _packed_bytes(gate_FD) // (padded(len(gate_FD)) // UNIT)
            for weight_FD, start in ((gate_FD, offset), (up_FD, offset + panel)):
                if weight_FD.dtype != self.dtype:
                    raise NotNative(f"a weight is {weight_FD.dtype} among others in {self.dtype}")
                self._packings.append(_Packing(weight_FD.detach(), start, apart=2))
        return first

    def embed(self, table_WD: Tensor, to: Place, frequencies_r: Tensor, factor: float) -> Place:
        """Begin with the embeddings of the tokens; returns where the angles of their positions are.

        The table is read where it lies.
        """
        if table_WD.dtype != self.dtype:
            raise NotNative(f"embeddings are {table_WD.dtype} among weights in {self.dtype}")
        self._table_WD = table_WD.detach()
        pairs = len(frequencies_r)
        [angles] = self.place("angles", 2 * pairs)
        frequencies = self.vector(frequencies_r)
        self.add(Embed(table_WD.shape[1], to, frequencies, pairs, factor, angles))
        return angles

    def project(
        self,
        layers: Sequence[Projection],
        norm: Norm,
        source: Place,
        to: str | Place,
        into: Into = Into.STORE,
        dtype: torch.dtype | None = None,
    ) -> list[Place]:
        """Project rows, normalised before, by one or several layers side by side.

        Args:
            layers: all of one input width.
            norm: of what goes in.
            source: what goes in.
            to: name of a buffer for the results, or where a single one goes.
            into: how it goes there.
            dtype: of the weights, if not that of the program.

        Returns:
            Where the result of each layer begins.
        """
        widths = [len(layer.weight_OI) for layer in layers]
        places = self.place(to, *widths) if isinstance(to, str) else [to]
        outputs = sum(map(padded, widths[:-1])) + widths[-1]
        self.add(
            Project(
                norm,
                source,
                layers[0].weight_OI.shape[1],
                self.weights(*(layer.weight_OI for layer in layers), dtype=dtype),
                self._bias(layers, outputs),
                outputs,
                int(dtype is torch.float32),
                places[0],
                into,
            )
        )
        return places

    def _bias(self, layers: Sequence[Projection], outputs: int) -> int:
        if all(layer.bias_O is None for layer in layers):
            return NONE
        joined = torch.zeros(padded(outputs))
        start = 0
        for weight_OI, bias_O in layers:
            if bias_O is not None:
                joined[start : start + len(bias_O)] = bias_O.detach()
            start += padded(len(weight_OI))
        return self.vector(joined)

    def _reserve(self, size: int) -> int:
        first = self._size
        self._size += -(-size // 128) * 128
        return first

    def pack(self, arena: Tensor | None = None) -> None:
        """Pack all weights, and let go of them; nothing can be added afterwards.

        Args:
            arena: of a program written from the same model before, to be used again.
        """
        if arena is None or arena.numel() != self._size:
            arena = torch.empty(self._size, dtype=torch.uint8)
        self._arena = arena
        for packing in self._packings:
            pack_weight(packing.weight_OI, arena, packing.offset, packing.apart)
        self._packings = []
        self._records = as_table(self._operations)
        self._strides_X = torch.tensor(self._strides)

    def give_arena(self) -> Tensor:
        """Give away the memory of the weights; the program does not run any more."""
        arena, self._arena = self._arena, torch.empty(0, dtype=torch.uint8)
        return arena

    def run(
        self,
        tokens: StepTokens,
        pages: Pages,
        *,
        threads: int,
        exact: bool = False,
        record_routes: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run a step: write the cache rows of the tokens, and return logits of the wanted rows.

        Args:
            tokens: of the step.
            pages: of a cache with the rows that the model's layers keep.
            threads: that share the work; no result depends on them.
            exact: leave out matrix units, whose order of sums is another one than that of vectors.
            record_routes: return the experts of every token.

        Returns:
            Logits float32 [L, W], which the next step overwrites, and int16 [M, Y, K] or None.

        Raises:
            ValueError: the tokens name what is not there; nothing was written.
        """
        with self._lock:
            count, wanted = len(tokens.input_ids_M), len(tokens.logits_rows_L)
            self._workspace = _grown(self._workspace, count * sum(self._strides))
            vocabulary = len(self._table_WD)
            self._logits_LW = _grown(self._logits_LW, wanted * vocabulary)
            logits_LW = self._logits_LW[: wanted * vocabulary].view(wanted, vocabulary)
            routes_MYK = None
            if record_routes and self.route_layers:
                shape = (count, self.route_layers, self.top_k)
                routes_MYK = torch.empty(shape, dtype=torch.int16)
            self._check(pages)
            self._call(tokens, pages, logits_LW, routes_MYK, threads, exact)
        return logits_LW, routes_MYK

    def _check(self, pages: Pages) -> None:
        for layer, widths in self.cache_widths.items():
            found = tuple(part.shape[1] for part in pages.parts[layer : layer + 1][0])
            if found != widths:
                raise ValueError(f"layer {layer} keeps rows of {widths}, the cache has {found}.")

    def _call(
        self,
        tokens: StepTokens,
        pages: Pages,
        logits_LW: Tensor,
        routes_MYK: Tensor | None,
        threads: int,
        exact: bool,
    ) -> None:
        ids_M, starts_Z1, lengths_Z, slots_M, tables_ZJ, wanted_L = tokens
        count, sequences, longest = len(ids_M), len(lengths_Z), tables_ZJ.shape[-1]
        layers = len(pages.parts)
        table_WD, whole = self._table_WD, torch.int64
        refusal = _PROGRAM_RUN.of(self.dtype, pages.dtype)(
            address("records", self._records, whole, self._records.shape),
            address("arena", self._arena, torch.uint8, (self._size,)),
            address("embeddings", table_WD, self.dtype, table_WD.shape),
            address("strides", self._strides_X, whole, (len(self._strides),)),
            own_address(self._workspace),
            address("parts of the cache", pages.addresses, whole, (layers, 2)),
            address("widths of the cache", pages.widths, whole, (layers, 2)),
            address("input_ids", ids_M, whole, (count,)),
            address("cu_seqlens", starts_Z1, whole, (sequences + 1,)),
            address("seq_lens", lengths_Z, whole, (sequences,)),
            address("slot_mapping", slots_M, whole, (count,)),
            address("block_tables", tables_ZJ, whole, (sequences, longest)),
            address("logits_rows", wanted_L, whole, (len(wanted_L),)),
            own_address(logits_LW),
            optional_address(
                "routes", routes_MYK, torch.int16, (count, self.route_layers, self.top_k)
            ),
            *(len(self._records), len(self._strides), len(table_WD)),
            *(pages.block_size, pages.num_blocks, count, sequences, longest, len(wanted_L)),
            *(self.route_layers, threads, exact),
        )
        if refusal:
            values = {"vocabulary": len(table_WD), "tokens": count, "num_blocks": pages.num_blocks}
            raise ValueError(f"{_REFUSALS[refusal].format(**values)}.")


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


def _packed_bytes(weight_OI: Tensor) -> int:
    outputs, inputs = weight_OI.shape
    return padded(outputs) * padded(inputs) * weight_OI.element_size()


def _grown(memory: Tensor, count: int) -> Tensor:
    """Return memory for as many numbers, the same where it holds them."""
    return memory if memory.numel() >= count else torch.empty(count)
