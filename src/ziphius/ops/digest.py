"""One number of all bits of a tensor, to notice a change: at the speed of memory, no secret.

The sum of its words of 32 bits, each times an odd number of 64 bits that its place gives, modulo
2^64 (multilinear hashing: Lemire and Kaser, arXiv 1202.4961; the numbers are those of SplitMix64).
A change of one word always changes it, another change all but once in 2^32.

Shapes: X words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops import native
from ziphius.ops.native.digest import digest

_AT_ONCE = 2**20


def tensor_digest(x: Tensor) -> int:
    """Return the digest of a tensor's numbers, of any dtype, as a signed number of 64 bits."""
    bytes_X = x.detach().contiguous().view(-1).view(torch.uint8)
    if bytes_X.numel() % 4 or bytes_X.storage_offset() % 4:
        bytes_X = F.pad(bytes_X, (0, -bytes_X.numel() % 4))
    words_X = bytes_X.view(torch.int32)
    if words_X.is_cpu and native.serves():
        return digest(words_X)
    total = 0
    for first in range(0, words_X.numel(), _AT_ONCE):
        part_X = words_X[first : first + _AT_ONCE].long()
        places_X = torch.arange(first, first + len(part_X), device=x.device)
        total += int((part_X * _factors(places_X)).sum())
    return (total + 2**63) % 2**64 - 2**63


def _factors(places_X: Tensor) -> Tensor:
    """Return an odd number for each place; products of int64 wrap around."""
    factors_X = places_X * _signed(0x9E3779B97F4A7C15)
    factors_X = (factors_X ^ _shifted(factors_X, 30)) * _signed(0xBF58476D1CE4E5B9)
    factors_X = (factors_X ^ _shifted(factors_X, 27)) * _signed(0x94D049BB133111EB)
    factors_X = factors_X ^ _shifted(factors_X, 31)
    return factors_X | 1


def _shifted(x_X: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros from the left."""
    shifted_X: Tensor = (x_X >> bits) & (2 ** (64 - bits) - 1)
    return shifted_X


def _signed(number: int) -> int:
    return number - 2**64
