"""A native program: a model's layers as a flat list of operations, which run in one call.

Modules write it: each has a method `emit` beside its `forward`, which appends the operations that
compute the same. Weights are packed once, in `pack`, as products read them; a program has no part
in what a model's weights become afterwards, and is written anew where they change.

Shapes: M new tokens, L rows whose logits are wanted, W vocabulary, D hidden, F width of a gated
layer, X layers, Y expert layers, K experts per token, I and O widths of a projection, in and out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.core.memory import huge_pages
from ziphius.ops import native
from ziphius.ops.cache_rows import RowLayout
from ziphius.ops.native.program import (
    NO_EXTRAS,
    BoundStep,
    PackedAdapter,
    PackedProgram,
    Pages,
    ProgramOutput,
    StepCall,
    StepExtras,
    StepTokens,
    bind_step,
    pack_weight,
)
from ziphius.ops.native.program_adapters import Part, Slot, pack_adapter, whole
from ziphius.ops.native.program_records import (
    NONE,
    NOWHERE,
    UNIT,
    Embed,
    Into,
    Keep,
    LowRank,
    Norm,
    Operation,
    Place,
    Project,
    Receive,
    as_table,
    padded,
)


class NotNative(Exception):
    """A model has a part that no native operation computes; the text says which."""


class Projection(NamedTuple):
    """What a linear layer multiplies by, and adds."""

    weight_OI: Tensor
    bias_O: Tensor | None = None


@dataclass(frozen=True)
class _Packing:
    """A weight to be packed: where it begins in the arena, and every how many panels it has one."""

    weight_OI: Tensor
    offset: int
    dtype: torch.dtype
    apart: int = 1


class Program:
    """Collects operations and weights from modules, then runs them.

    Args:
        stored: dtype of the weights: float32 or bfloat16.
        dtype: what products multiply in, by default the same. bfloat16 for float32 weights rounds
            what autocast rounds at every product, once: embeddings, norms and routers stay.
        adaptable: weights of the projections that adapters may be for, by name; none by default.

    Raises:
        NotNative: kernels do not run here, or not in these dtypes.
    """

    def __init__(
        self,
        stored: torch.dtype,
        dtype: torch.dtype | None = None,
        adaptable: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        dtype = dtype or stored
        if not native.serves():
            raise NotNative(f"native kernels are {native.status()}")
        if stored not in (torch.float32, torch.bfloat16):
            raise NotNative(f"weights are {stored}, not float32 or bfloat16")
        if dtype not in (stored, torch.bfloat16):
            raise NotNative(f"products in {dtype} of weights in {stored}")
        self.stored, self.dtype = stored, dtype
        self.window, self.sinks = 0, 0
        """What attention sees, beside the sinks: that many last tokens, 0 for all."""
        self.route_layers, self.top_k = 0, 0
        self.cache_layouts: dict[int, tuple[RowLayout, ...]] = {}
        """Rows that each layer writes to the cache."""
        self._layers, self._width = 0, 0
        self._names = {id(weight_OI): name for name, weight_OI in adaptable.items()}
        self._slots: list[Slot] = []
        self._received_width = 0
        self._operations: list[Operation] = []
        self._buffers: dict[str, int] = {}
        self._strides: list[int] = []
        self._packings: list[_Packing] = []
        self._size = 0
        self._lock = Lock()
        self._workspace = torch.empty(0)
        self._logits, self._hidden = torch.empty(0), torch.empty(0)
        self._bound: tuple[StepCall, BoundStep, ProgramOutput] | None = None

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
        row = x.detach().float().reshape(1, -1)
        self._packings.append(_Packing(row, offset, row.dtype, apart=0))
        return offset

    def weights(self, *weights_OI: Tensor, dtype: torch.dtype | None = None) -> int:
        """Keep matrices one behind the other, each in panels, and return where the first is."""
        packed = dtype or self.dtype
        first = self._size
        for weight_OI in weights_OI:
            self._refuse_other(weight_OI, dtype or self.stored)
            offset = self._reserve(_packed_bytes(weight_OI, packed))
            self._packings.append(_Packing(weight_OI.detach(), offset, packed))
        return first

    def weight_pairs(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Keep pairs of gate and up projection, their panels alternating; return where."""
        first = self._size
        for gate_FD, up_FD in pairs:
            size = _packed_bytes(gate_FD, self.dtype)
            offset = self._reserve(size + _packed_bytes(up_FD, self.dtype))
            panel = size // (padded(len(gate_FD)) // UNIT)
            for weight_FD, start in ((gate_FD, offset), (up_FD, offset + panel)):
                self._refuse_other(weight_FD, self.stored)
                self._packings.append(_Packing(weight_FD.detach(), start, self.dtype, apart=2))
        return first

    @staticmethod
    def _refuse_other(weight: Tensor, dtype: torch.dtype) -> None:
        if weight.dtype != dtype:
            raise NotNative(f"a weight is {weight.dtype} among others in {dtype}")

    def embed(self, table_WD: Tensor, to: Place, frequencies_r: Tensor, factor: float) -> Place:
        """Look the tokens up; returns where the angles of their positions are.

        The table is read where it lies.
        """
        self._refuse_other(table_WD, self.stored)
        self._table_WD = table_WD.detach()
        pairs = len(frequencies_r)
        [angles] = self.place("angles", 2 * pairs)
        frequencies = self.vector(frequencies_r)
        is_float = int(self.stored is torch.float32)
        self.add(Embed(table_WD.shape[1], to, frequencies, pairs, factor, angles, is_float))
        return angles

    def receive(self, width: int) -> Place:
        """Take rows of this width that the caller brings, and return where they are."""
        self._received_width = width
        [to] = self.place("received", width)
        self.add(Receive(width, to))
        return to

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
        for layer, place in zip(layers, places, strict=True):
            self.adapt(layer.weight_OI, norm, source, place)
        return places

    def takes_adapters(self, weight_OI: Tensor) -> bool:
        """Tell whether adapters may be for the projection that has this weight."""
        return id(weight_OI) in self._names

    def adapt(
        self,
        weight_OI: Tensor,
        norm: Norm,
        source: Place,
        to: Place,
        into: Into = Into.ADD,
        part: Part | None = None,
    ) -> None:
        """Have the rows with an adapter get what it does to a projection, if one may be for it.

        Args:
            weight_OI: of the projection.
            norm: of what goes in.
            source: what goes in.
            to: where the result goes.
            into: added to what is there; or stored, as zeros for an adapter that has nothing.
            part: what is computed of the projection, by default all.
        """
        if not self.takes_adapters(weight_OI):
            return
        outputs, inputs = weight_OI.shape
        part = part or Part(whole, inputs, outputs, heads=1, from_step=0, to_step=0)
        slot = len(self._slots)
        self._slots.append(Slot(self._names[id(weight_OI)], part.factors))
        ways = (int(part.down_each), int(part.up_each), slot, into)
        sizes = (part.inputs, part.from_step, part.outputs)
        self.add(LowRank(norm, source, *sizes, to, part.to_step, part.heads, *ways))

    def gate_updates(self, gate_FD: Tensor, up_FD: Tensor, norm: Norm, source: Place) -> Place:
        """Compute what adapters do to gate and up projection; returns where, for `Gated`."""
        if not self.takes_adapters(gate_FD):
            return NOWHERE
        gate, up = self.place("gate updates", len(gate_FD), len(up_FD))
        self.adapt(gate_FD, norm, source, gate, Into.STORE)
        self.adapt(up_FD, norm, source, up, Into.STORE)
        return gate

    def pack_adapter(self, adapter: Mapping[str, tuple[Tensor, Tensor, float]]) -> PackedAdapter:
        """Pack the matrices down and up and the factor of an adapter, by name of projection."""
        return pack_adapter(self._slots, adapter, self.dtype)

    def keep(self, stream: Place, width: int, norm: Norm | None = None) -> None:
        """Let a caller ask for the stream: as it is here, behind a layer, or normalised."""
        self._width = width
        if norm is not None:
            self.add(Keep(norm, stream, width, NONE))
            return
        self.add(Keep(Norm(), stream, width, self._layers))
        self._layers += 1

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
            arena = huge_pages(self._size)
        for packing in self._packings:
            pack_weight(packing.weight_OI, arena, packing.offset, packing.apart, packing.dtype)
        self._packings = []
        self._packed = PackedProgram(
            as_table(self._operations),
            arena,
            self._table_WD,
            self.dtype,
            torch.tensor(self._strides),
            self.cache_layouts,
            (self.route_layers, self.top_k),
            (self._layers, self._width),
            self._received_width,
            len(self._slots),
        )

    @property
    def arena(self) -> Tensor:
        """Return the memory of the packed weights, for a program that takes this one's place."""
        return self._packed.arena

    def run(
        self,
        tokens: StepTokens,
        pages: Pages,
        extras: StepExtras = NO_EXTRAS,
        *,
        threads: int,
        exact: bool = False,
        record_routes: bool = False,
        return_hidden: bool = False,
        return_streams: bool = False,
    ) -> ProgramOutput:
        """Run a step: write the cache rows of the tokens, and return logits of the wanted rows.

        Args:
            tokens: of the step.
            pages: of a cache with the rows that the model's layers keep.
            extras: what only some programs or steps have.
            threads: that share the work; no result depends on them.
            exact: leave out matrix units, whose order of sums is another one than that of vectors.
            record_routes: return the experts of every token, if there are expert layers.
            return_hidden: return the hidden states of every token.
            return_streams: return the residual stream of every token behind each layer.

        Returns:
            What was asked for; the next step overwrites logits and hidden states.

        Raises:
            ValueError: as `bind_step` and `BoundStep` do.
        """
        returns = record_routes, return_hidden, return_streams
        asked = StepCall(tokens, pages, extras, threads, exact, *returns)
        with self._lock:
            if self._bound is None or not self._bound[0].is_same(asked):
                self._bound = (asked, *self._bind(asked))
            _, step, output = self._bound
            if output.routes_MYK is not None or output.streams_XMD is not None:
                self._bound = None  # the caller keeps them
            step()
        return output

    def _bind(self, asked: StepCall) -> tuple[BoundStep, ProgramOutput]:
        """Make room for a step, and return what runs it."""
        packed, tokens = self._packed, asked.tokens
        count, wanted = tokens.input_ids_M.shape[0], tokens.logits_rows_L.shape[0]
        layers, width = packed.stream_shape
        vocabulary = packed.vocabulary
        self._workspace = _grown(self._workspace, count * packed.row_numbers)
        self._logits = _grown(self._logits, wanted * vocabulary)
        logits_LW = self._logits[: wanted * vocabulary].view(wanted, vocabulary)
        routes_MYK = hidden_MD = streams_XMD = None
        if asked.record_routes and packed.routes_shape[0]:
            routes_MYK = torch.empty((count, *packed.routes_shape), dtype=torch.int16)
        if asked.return_hidden:
            self._hidden = _grown(self._hidden, count * width)
            hidden_MD = self._hidden[: count * width].view(count, width)
        if asked.return_streams:
            streams_XMD = torch.empty(layers, count, width)
        output = ProgramOutput(logits_LW, routes_MYK, hidden_MD, streams_XMD)
        step = bind_step(packed, asked, self._workspace, output)
        return step, output


def _packed_bytes(weight_OI: Tensor, dtype: torch.dtype) -> int:
    outputs, inputs = weight_OI.shape
    return padded(outputs) * padded(inputs) * dtype.itemsize


def _grown(memory: Tensor, count: int) -> Tensor:
    """Return memory for as many numbers, the same where it holds them."""
    return memory if memory.numel() >= count else torch.empty(count)
