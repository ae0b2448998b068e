"""FP8 weights in 128x128 blocks, as the V3 family stores them: DeepSeek-V3 report, section 3.3.

A weight [R, C] is kept as float8_e4m3fn numbers q and one scale per block; w = q * scale. The
published name of the scales, `weight_scale_inv`, says "inverse" but they are multipliers. Blocks at
the lower and right edges may be smaller, so scales are [ceil(R / 128), ceil(C / 128)]:
`kv_a_proj_with_mqa` [576, 7168] has scales [5, 56].

Where this departs from the published kernels:
    1. Float scales are rounded up to 20 significant bits (by less than one part in 500,000). A q
       has 4, so q * scale is exact in float32, and a weight that was read from FP8 and is written
       again keeps its values exactly, as it does with power-of-two scales.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max  # 448
SMALLEST_AMAX = 1e-4  # below it a block of zeros would divide by zero

ScaleFormat = Literal["float", "ue8m0"]


def scale_shape(rows: int, columns: int) -> tuple[int, int]:
    """Count the blocks of a weight down and across, those cut off by an edge included."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


def is_misread(rows: int, columns: int) -> bool:
    """Tell whether transformers 5.23, where it multiplies FP8 out, takes other blocks than these.

    It divides a side by its number of blocks: 192 are two blocks of 96 there, and 128 and 64 here.
    """
    return not is_refused(rows, columns) and any(map(_has_rest, (rows, columns)))


def is_refused(rows: int, columns: int) -> bool:
    """Tell whether transformers 5.23 cannot multiply FP8 of this shape out, such as 576 in five."""
    blocks = zip((rows, columns), scale_shape(rows, columns), strict=True)
    return any(side % count for side, count in blocks)


def _has_rest(side: int) -> bool:
    return side > BLOCK and side % BLOCK != 0


def quantize(weight: Tensor, scale_format: ScaleFormat = "float") -> tuple[Tensor, Tensor]:
    """Round a weight [R, C] to FP8 blocks and return its numbers and its float32 scales.

    Works through one row of blocks at a time, so that it needs little memory beside its result.

    Args:
        weight: any floating dtype; NaN or infinity ends up in the scale of its block.
        scale_format: `ue8m0` rounds each scale up to a power of two (V3.1, Blackwell's format).
    """
    numbers = torch.empty_like(weight, dtype=FORMAT)
    scales = weight.new_empty(scale_shape(*weight.shape), dtype=torch.float32)
    for index, strip in enumerate(weight.split(BLOCK)):
        strip = strip.float()
        # Down first, then across: 2x faster than both at once.
        amax_columns = F.pad(strip.abs().amax(0), (0, -strip.shape[1] % BLOCK))
        amax = amax_columns.unflatten(0, (-1, BLOCK)).amax(1).clamp(min=SMALLEST_AMAX)
        scales[index] = _rounded_up(amax / LARGEST, scale_format)
        numbers[index * BLOCK : (index + 1) * BLOCK] = strip / _widened(scales[index], strip)
    return numbers, scales


def dequantize(numbers: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiply FP8 numbers [R, C] by the scales of their blocks; products are taken in float32."""
    weight = torch.empty_like(numbers, dtype=dtype)
    values = torch.arange(256, dtype=torch.uint8, device=numbers.device).view(FORMAT).float()
    for index, strip in enumerate(numbers.split(BLOCK)):
        # A table of all 256 numbers is 6x faster on a CPU than torch's own conversion.
        exact = values.index_select(0, strip.flatten().view(torch.uint8).int()).view(strip.shape)
        product = exact * _widened(scales[index].float(), strip)
        weight[index * BLOCK : (index + 1) * BLOCK] = product
    return weight


def _widened(scales: Tensor, strip: Tensor) -> Tensor:
    """Repeat a row of scales over the columns of their blocks, cropped at the right edge."""
    return scales.repeat_interleave(BLOCK)[: strip.shape[1]]


def _rounded_up(scales: Tensor, scale_format: ScaleFormat) -> Tensor:
    """Round positive float32 up: to a power of two, or to 20 significant bits."""
    # On the bits, because a positive float grows with its bits read as an integer, and carrying
    # into the exponent is the rounding to the next power of two. Exact where log2 may not be.
    low_bits = 23 if scale_format == "ue8m0" else 4
    step = 1 << low_bits
    rounded = ((scales.view(torch.int32) + (step - 1)) & -step).view(torch.float32)
    return torch.where(scales.isfinite(), rounded, scales)
