"""Kernels of `sampling.cpp`: the next token of each row of logits, and how likely tokens are.

Shapes: L rows, W vocabulary.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, own_address, row_address

_SAMPLE = Kernel(
    "sample",
    "const float* logits, int64_t stride, const int64_t* keys, const float* temperatures, "
    "const int64_t* top_k, const double* top_p, const float* min_p, const int64_t* positions, "
    "int64_t* ids, float* logprobs, float* normalizers, int64_t rows, int64_t width, int64_t limit",
    kinds=("",),
)
_SCORE = Kernel(
    "score",
    "const float* logits, int64_t stride, const int64_t* ids, const float* temperatures, "
    "float* logprobs, float* normalizers, int64_t rows, int64_t width, int64_t limit",
    kinds=("",),
    returns="int64_t",
)


def sample(
    logits_LW: Tensor,
    keys_L: Tensor,
    temperatures_L: Tensor,
    top_k_L: Tensor,
    top_p_L: Tensor,
    min_p_L: Tensor,
    positions_L: Tensor,
    *,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token of each row.

    Args:
        logits_LW: float32; rows may be parts of wider ones.
        keys_L: int64, the bits of the keys of `ops.sampling.sequence_keys`.
        temperatures_L: float32; 0 takes the most likely token.
        top_k_L: int64, 0 for none.
        top_p_L: float64.
        min_p_L: float32.
        positions_L: int64, where the tokens will stand.
        limit: tokens that may be drawn, the first ones of W.

    Returns:
        Ids, int64; their log-probabilities before the filters, and what was subtracted for them
        from the divided logits, float32.
    """
    rows, width = logits_LW.shape
    _check_limit(limit, width)
    ids_L, logprobs_L, normalizers_L = _results(logits_LW)
    _SAMPLE.of()(
        *row_address("logits of sample", logits_LW, torch.float32, (rows, width)),
        address("keys of sample", keys_L, torch.int64, (rows,)),
        address("temperatures of sample", temperatures_L, torch.float32, (rows,)),
        address("top_k of sample", top_k_L, torch.int64, (rows,)),
        address("top_p of sample", top_p_L, torch.float64, (rows,)),
        address("min_p of sample", min_p_L, torch.float32, (rows,)),
        address("positions of sample", positions_L, torch.int64, (rows,)),
        own_address(ids_L),
        own_address(logprobs_L),
        own_address(normalizers_L),
        *(rows, width, limit),
    )
    return ids_L, logprobs_L, normalizers_L


def score(
    logits_LW: Tensor, ids_L: Tensor, temperatures_L: Tensor, *, limit: int
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and normalizers of given tokens, to the bit those of `sample`."""
    rows, width = logits_LW.shape
    _check_limit(limit, width)
    _, logprobs_L, normalizers_L = _results(logits_LW)
    failed = _SCORE.of()(
        *row_address("logits of score", logits_LW, torch.float32, (rows, width)),
        address("ids of score", ids_L, torch.int64, (rows,)),
        address("temperatures of score", temperatures_L, torch.float32, (rows,)),
        own_address(logprobs_L),
        own_address(normalizers_L),
        *(rows, width, limit),
    )
    if failed:
        found = f"{int(ids_L.min())} to {int(ids_L.max())}"
        raise ValueError(f"ids are {found}; a vocabulary of {width} has 0 to {width - 1}.")
    return logprobs_L, normalizers_L


def _results(logits_LW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(logits_LW)
    ids_L = logits_LW.new_empty(rows, dtype=torch.int64)
    return ids_L, logits_LW.new_empty(rows), logits_LW.new_empty(rows)


def _check_limit(limit: int, width: int) -> None:
    if not 1 <= limit <= width:
        raise ValueError(f"tokens up to {limit} cannot be drawn from a vocabulary of {width}.")
