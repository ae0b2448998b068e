"""Rows of a cache in 8 bits a number: how they lie in memory, and the way there and back.

Numbers share a scale in groups of `scale_width`: int8 ones are -127 to 127 times it, FP8 ones
(e4m3, arXiv 2209.05433) -448 to 448. The last `kept` numbers of a row stay bfloat16: of latent
attention the rotated key, which has no norm before it. With 128 numbers to a scale that is the row
of FlashMLA's FP8 cache: 656 bytes for V3. What a row becomes hangs on its own numbers alone. Where
a number of a group is not finite, none of the group is when they are read. The native program has
the same bytes (`native/eight_bits.h`).

Shapes: X width of a row in numbers, U in bytes, Y scales, all behind any leading dimensions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest number before it is scaled, by dtype: those that rows of 8 bits are made of."""
SMALLEST = 2.0**-100
"""A group whose numbers are all smaller becomes zeros: its scale could not be divided by."""


@dataclass(frozen=True)
class RowLayout:
    """Bytes of a row: scales, what is kept in bfloat16, the other numbers, zeros up to fours."""

    width: int
    """Numbers of a row."""
    scale_width: int
    """Numbers that share a scale; the last group may have fewer."""
    kept: int = 0
    """Numbers at the end that are not rounded to 8 bits."""

    @property
    def rounded(self) -> int:
        """Numbers of 8 bits."""
        return self.width - self.kept

    @property
    def scales(self) -> int:
        """Scales of a row."""
        return -(-self.rounded // self.scale_width)

    @property
    def first_byte(self) -> int:
        """Where the numbers of 8 bits begin."""
        return 4 * self.scales + 2 * self.kept

    @property
    def size_bytes(self) -> int:
        """Bytes of a row."""
        return -(-(self.first_byte + self.rounded) // 4) * 4


def pack_rows(rows_X: Tensor, layout: RowLayout, dtype: torch.dtype) -> Tensor:
    """Round rows to 8 bits: uint8 [..., U].

    Args:
        rows_X: of any floating dtype.
        layout: of a row.
        dtype: of the numbers, one of `LARGEST`.
    """
    rounded_X, kept_X = rows_X.float().split((layout.rounded, layout.kept), -1)
    spare = layout.scales * layout.scale_width - layout.rounded
    groups_YX = F.pad(rounded_X, (0, spare)).unflatten(-1, (layout.scales, layout.scale_width))
    most_Y1 = groups_YX.abs().amax(-1, keepdim=True)
    # The other way round a NaN would count as small.
    is_small_Y1 = most_Y1 < SMALLEST
    scale_Y1 = (most_Y1 / LARGEST[dtype]).masked_fill(is_small_Y1, 0)
    scaled_YX = groups_YX * (LARGEST[dtype] / most_Y1).masked_fill(is_small_Y1, 0)
    if dtype is torch.int8:
        scaled_YX = scaled_YX.round().nan_to_num(0)
    numbers_X = scaled_YX.to(dtype).flatten(-2)[..., : layout.rounded]
    bytes_U = torch.cat(
        (
            scale_Y1.squeeze(-1).view(torch.uint8),
            kept_X.bfloat16().contiguous().view(torch.uint8),
            numbers_X.contiguous().view(torch.uint8),
        ),
        dim=-1,
    )
    return F.pad(bytes_U, (0, layout.size_bytes - bytes_U.shape[-1]))


def unpack_rows(bytes_U: Tensor, layout: RowLayout, dtype: torch.dtype) -> Tensor:
    """Return the numbers that rows of 8 bits stand for, float32 [..., X]."""
    end = layout.first_byte + layout.rounded
    scales_U, kept_U, numbers_U, _ = bytes_U.split(
        (4 * layout.scales, 2 * layout.kept, layout.rounded, layout.size_bytes - end), -1
    )
    scale_Y = scales_U.contiguous().view(torch.float32)
    scale_X = scale_Y.repeat_interleave(layout.scale_width, -1)[..., : layout.rounded]
    rounded_X = numbers_U.contiguous().view(dtype).float() * scale_X
    return torch.cat((rounded_X, kept_U.contiguous().view(torch.bfloat16).float()), dim=-1)
