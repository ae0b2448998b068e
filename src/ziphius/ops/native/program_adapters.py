"""Adapters of low rank for native programs: what each projection takes of one, packed on load.

A program that takes adapters has, beside the operations of its projections, a `LowRank` for each,
with a slot that says which matrices are its own. The projections' weights stay as they are packed:
an adapter is a small arena of its own, and a step names those that its rows have.

Shapes: I and O widths of a projection, in and out, r rank, N heads.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops.native.program import PackedAdapter, pack_weight
from ziphius.ops.native.program_records import padded

Factors = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Matrices [r, I] and [O, r] of a slot: one for all heads, or one each."""


def whole(down_rI: Tensor, up_Or: Tensor) -> Factors:
    """Take the two matrices of an adapter as they are."""
    return [down_rI], [up_Or]


@dataclass(frozen=True)
class Part:
    """What an operation computes of a projection, if not all of it: head after head."""

    factors: Callable[[Tensor, Tensor], Factors]
    inputs: int
    outputs: int
    heads: int
    from_step: int
    to_step: int
    down_each: bool = False
    """Heads have a matrix down each, and share the one up."""
    up_each: bool = False


class Slot(NamedTuple):
    """What one `LowRank` needs of an adapter."""

    name: str
    """Of the projection."""
    factors: Callable[[Tensor, Tensor], Factors]


def pack_adapter(
    slots: Sequence[Slot], adapter: Mapping[str, tuple[Tensor, Tensor, float]], dtype: torch.dtype
) -> PackedAdapter:
    """Pack an adapter for a program.

    Args:
        slots: of the program.
        adapter: matrices [r, I] and [O, r] and the factor on their product, by the name of the
            projection; what it has for others is an error of the caller.
        dtype: of the program.
    """
    own = [_own(slot, adapter, dtype) for slot in slots]
    size = sum(_size(matrix) for (down, up), *_ in own for matrix in (*down, *up))
    arena = torch.empty(size, dtype=torch.uint8)
    parts = torch.zeros(len(slots), 4, dtype=torch.int64)
    offset = 0
    for row, ((downs, ups), rank, scaling) in zip(parts, own, strict=True):
        places = []
        for matrices in (downs, ups):
            places.append(offset)
            for matrix in matrices:
                pack_weight(matrix, arena, offset, 1)
                offset += _size(matrix)
        [factor] = struct.unpack("<q", struct.pack("<d", scaling))
        row[:] = torch.tensor([*places, rank, factor])
    return PackedAdapter(arena, parts)


def _own(
    slot: Slot, adapter: Mapping[str, tuple[Tensor, Tensor, float]], dtype: torch.dtype
) -> tuple[Factors, int, float]:
    """Return the matrices of a slot, their rank and factor; rank 0 where the adapter has none."""
    if slot.name not in adapter:
        return ([], []), 0, 0.0
    down_rI, up_Or, scaling = adapter[slot.name]
    downs, ups = slot.factors(down_rI.detach().to(dtype), up_Or.detach().to(dtype))
    factors = [down.contiguous() for down in downs], [up.contiguous() for up in ups]
    return factors, len(down_rI), scaling


def _size(matrix: Tensor) -> int:
    """Return bytes: whole panels, so that what follows begins with a line of the cache."""
    outputs, inputs = matrix.shape
    return padded(outputs) * padded(inputs) * matrix.element_size()
