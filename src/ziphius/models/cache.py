"""What attention remembers of earlier tokens, during generation.

A layer keeps one row of numbers per token and part: latent attention one part of C + R numbers for
all heads, grouped attention its keys and its values. The slot of a token is its position.

Shapes: B sequences, T new tokens, S slots read, width of a part.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.core.device import send
from ziphius.models.attention_spec import CacheSpec
from ziphius.models.config import ModelConfig


class Cache:
    """Fixed memory for `capacity` tokens of each of `batch_size` sequences, all layers.

    Order of use: every layer appends its new rows once per forward pass, then the model calls
    `advance`. A right-padded batch of prompts is appended whole and then cut with `truncate`; the
    padding's slots are overwritten by what comes next and are never visible before that.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity = capacity
        # On the CPU whatever the device: lengths steer the host, and reading them must not wait.
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64)
        self._slots: tuple[Tensor, Tensor] | None = None
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self._parts = [
            tuple(
                torch.zeros(batch_size, capacity, width, dtype=dtype, device=device)
                for width in config.cache_widths
            )
            for _ in range(layers)
        ]

    def append(self, layer_idx: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Store the new rows [B, T, width] of each part; return all rows [B, S, width].

        S is the longest sequence after the append; rows of shorter ones past their length hold
        padding, which the caller's mask must hide.
        """
        new_tokens = new[0].shape[1]
        lengths = self.lengths_B.tolist()
        total = max(lengths) + new_tokens
        assert total <= self.capacity, f"cache of {self.capacity} tokens asked to hold {total}"
        parts = self._parts[layer_idx]
        for part, rows in zip(parts, new, strict=True):
            if len(set(lengths)) == 1:
                part[:, lengths[0] : total] = rows
            else:
                slots_BT1 = self._next_slots(new_tokens, part.device).unsqueeze(-1)
                part.scatter_(1, slots_BT1.expand_as(rows), rows.to(part.dtype))
        return tuple(part[:, :total] for part in parts)

    def _next_slots(self, new_tokens: int, device: torch.device) -> Tensor:
        """Return `next_positions` on a device, sent there by the first layer for all."""
        if self._slots is None or self._slots[0] is not self.lengths_B:
            self._slots = self.lengths_B, send(self.next_positions(new_tokens), device)
        return self._slots[1]

    def next_positions(self, new_tokens: int) -> Tensor:
        """Return the positions [B, T] that the next T tokens of each sequence take."""
        return self.lengths_B[:, None] + torch.arange(new_tokens)

    def advance(self, new_tokens: int) -> None:
        """Count the rows just appended by all layers as held."""
        self.lengths_B = self.lengths_B + new_tokens

    def truncate(self, lengths_B: Tensor) -> None:
        """Forget everything past the given lengths: padding, or rejected drafts."""
        assert bool((lengths_B <= self.lengths_B).all()), "a cache can only be cut shorter"
        self.lengths_B = lengths_B.to(device="cpu", dtype=torch.int64).clone()

    def keep(self, rows: list[int]) -> None:
        """Keep only these sequences, in this order: finished ones leave the batch."""
        self.lengths_B = self.lengths_B[rows]
        self._parts = [tuple(part[rows] for part in parts) for parts in self._parts]

    @property
    def size_bytes(self) -> int:
        """Memory held, all layers and sequences."""
        return sum(part.nbytes for parts in self._parts for part in parts)


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
    token in all layers.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.parts = [
            tuple(
                torch.zeros(num_blocks * block_size, width, dtype=dtype, device=device)
                for width in spec.widths
            )
            for spec in specs
        ]
        """By layer."""

    def by_slot(self) -> "PagedCache":
        """Return the same memory as blocks of one slot, for sequences whose rows lie anywhere."""
        view = copy.copy(self)
        view.num_blocks, view.block_size = self.num_blocks * self.block_size, 1
        return view

    def write(self, layer_idx: int, slots_M: Tensor, *rows: Tensor) -> None:
        """Store the rows [M, width] of each part."""
        for part, rows_MX in zip(self.parts[layer_idx], rows, strict=True):
            part[slots_M] = rows_MX.to(part.dtype)

    def read(self, layer_idx: int, slots: Tensor | Span) -> tuple[Tensor, ...]:
        """Return the rows at these slots, [Z, S, width] of each part: copies, of a span views."""
        if isinstance(slots, Span):
            return tuple(_view(part, slots) for part in self.parts[layer_idx])
        return tuple(F.embedding(slots, part) for part in self.parts[layer_idx])

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


def _view(part: Tensor, span: Span) -> Tensor:
    width = part.shape[1]
    shape, strides = (span.rows, span.length, width), (span.stride * width, width, 1)
    return part.as_strided(shape, strides, span.first * width)
