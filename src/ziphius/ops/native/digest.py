"""The kernel of `digest.cpp`: one number of a run of words.

Shapes: X words.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address

_DIGEST = Kernel("digest", "const int32_t* words, int64_t count", kinds=("",), returns="int64_t")


def digest(words_X: Tensor) -> int:
    """Return the digest of int32 words, as a signed number of 64 bits."""
    count = words_X.numel()
    return _DIGEST.of()(address("words", words_X, torch.int32, (count,)), count)
