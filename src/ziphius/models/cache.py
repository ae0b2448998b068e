"""What attention remembers of earlier tokens, during generation.

A layer keeps one row of numbers per token and part: latent attention one part of C + R numbers for
all heads, grouped attention its keys and its values. Which slot is whose is decided elsewhere.

Shapes: M new tokens, Z sequences, S slots read of each, X width of a part.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.core.memory import zeros_on_demand
from ziphius.models.attention_spec import CacheSpec
from ziphius.ops.cache_rows import LARGEST, RowLayout, pack_rows, unpack_rows


@dataclass(frozen=True)
class Span:
    """Slots [rows, length] in order: row z are those from `first + z * stride` on."""

    first: int
    stride: int
    rows: int
    length: int


class PagedCache:
    """Rows of numbers in blocks of `block_size` slots; who owns which block is not decided here.

    Every part of every layer is one tensor [num_blocks * block_size, width]. A slot holds the same
    token in all layers. In 8 bits a row is one of bytes, rounded when it is written and read as it
    then is, also by the step that writes it: how a prompt is cut changes nothing.

    Args:
        specs: what each layer keeps of a token.
        num_blocks: in all.
        block_size: slots of a block.
        dtype: of the numbers that rows are kept in; int8 and float8_e4m3fn have scales beside them.
        device: where.
        read_dtype: that they are read in, by default the same, of 8 bits float32: what is computed
            with.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        read_dtype: torch.dtype | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.has_scales = dtype in LARGEST
        self._read_dtype = read_dtype or (torch.float32 if self.has_scales else dtype)
        self.layouts = [row_layouts(spec) for spec in specs]
        """By layer, of each part."""
        slots, part_dtype = num_blocks * block_size, torch.uint8 if self.has_scales else dtype
        self.parts = [
            tuple(
                zeros_on_demand((slots, self._row_width(layout)), part_dtype, device)
                for layout in layouts
            )
            for layouts in self.layouts
        ]
        """By layer."""

    def _row_width(self, layout: RowLayout) -> int:
        return layout.size_bytes if self.has_scales else layout.width

    def by_slot(self) -> "PagedCache":
        """Return the same memory as blocks of one slot, for sequences whose rows lie anywhere."""
        view = copy.copy(self)
        view.num_blocks, view.block_size = self.num_blocks * self.block_size, 1
        return view

    def write(self, layer_idx: int, slots_M: Tensor, *rows: Tensor) -> None:
        """Store the rows [M, width] of each part."""
        for part, layout, rows_MX in zip(
            self.parts[layer_idx], self.layouts[layer_idx], rows, strict=True
        ):
            if self.has_scales:
                part[slots_M] = pack_rows(rows_MX, layout, self.dtype)
            else:
                part[slots_M] = rows_MX.to(part.dtype)

    def read(self, layer_idx: int, slots: Tensor | Span) -> tuple[Tensor, ...]:
        """Return the rows at these slots, [Z, S, width] of each part.

        They are copies, those of a span views of the cache if it has no scales.
        """
        if isinstance(slots, Span):
            rows = [_view(part, slots) for part in self.parts[layer_idx]]
        else:
            rows = [F.embedding(slots, part) for part in self.parts[layer_idx]]
        if self.has_scales:
            layouts = self.layouts[layer_idx]
            rows = [unpack_rows(*pair, self.dtype) for pair in zip(rows, layouts, strict=True)]
        return tuple(part.to(self._read_dtype) for part in rows)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks, all layers: a sequence is about to write where others read."""
        for parts in self.parts:
            for part in parts:
                blocks = part.view(self.num_blocks, self.block_size, -1)
                blocks[list(targets)] = blocks[list(sources)]

    @property
    def size_bytes(self) -> int:
        """Memory held, all layers."""
        return sum(part.nbytes for parts in self.parts for part in parts)


def row_layouts(spec: CacheSpec) -> tuple[RowLayout, ...]:
    """Say how a row of each part lies in a cache of 8 bits, and how wide it is in any."""
    return tuple(RowLayout(width, spec.scale_width, spec.kept) for width in spec.widths)


def token_bytes(specs: Sequence[CacheSpec], dtype: torch.dtype) -> int:
    """Return the memory that a token takes in a cache of this dtype, all layers."""
    if dtype in LARGEST:
        return sum(layout.size_bytes for spec in specs for layout in row_layouts(spec))
    return sum(spec.numbers for spec in specs) * dtype.itemsize


def _view(part: Tensor, span: Span) -> Tensor:
    width = part.shape[1]
    shape, strides = (span.rows, span.length, width), (span.stride * width, width, 1)
    return part.as_strided(shape, strides, span.first * width)
