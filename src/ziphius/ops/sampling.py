"""Sampling of the next token from logits: temperature, top-k, top-p (arXiv 1904.09751), min-p
(arXiv 2407.01082), in that order, which is the order of transformers.

Randomness is counter-based: a draw is a hash of the (seed, sequence id, position) it is made for,
so neither the other rows of a batch, nor an interruption, nor the device changes it. The few sums
that need float64 are taken on the CPU where the device has none (Apple's have not).

Shapes: B sequences, L rows of logits, W vocabulary, K candidates, Y blocks of b tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.core.device import float64_device, with_float64
from ziphius.core.errors import ConfigError
from ziphius.ops import native
from ziphius.ops.logprobs import divided, score_rows
from ziphius.ops.native import sampling
from ziphius.ops.sampling_config import SamplingConfig

_CANDIDATES = 1024
_BLOCK = 64
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit words: the output function of SplitMix64 (Steele et al., OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def sequence_keys(seeds: Sequence[int], sequence_ids: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Hash (seed, sequence id) of each row to the key that `uniforms` counts from."""
    keys = _mix(np.asarray(seeds, dtype=np.uint64) + _GOLDEN_GAMMA)
    return _mix(keys ^ _mix(np.asarray(sequence_ids, dtype=np.uint64) + _GOLDEN_GAMMA))


def uniforms(
    keys_B: npt.NDArray[np.uint64], positions_B: Sequence[int] | npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Draw a number in (0, 1) for each row: output `position` of SplitMix64 from the row's key."""
    counters = np.asarray(positions_B, dtype=np.uint64) + np.uint64(1)
    bits = _mix(keys_B + counters * _GOLDEN_GAMMA) >> np.uint64(12)
    # 52 bits and a half are exact in fp64, and neither 0 nor 1: token probabilities of 0 stay 0.
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def keep_top_k(logits_BW: Tensor, top_k_B: Tensor) -> Tensor:
    """Mask what is less likely than the k-th token of its row; ties with it stay, 0 keeps all."""
    top_k_B1 = top_k_B.unsqueeze(-1)
    k_B1 = top_k_B1.clamp(min=1, max=logits_BW.size(-1))
    best_BK = logits_BW.topk(int(k_B1.max()), dim=-1).values
    floor_B1 = best_BK.gather(-1, k_B1 - 1).masked_fill(top_k_B1 == 0, -torch.inf)
    return logits_BW.masked_fill(logits_BW < floor_B1, -torch.inf)


def keep_top_p(logits_BW: Tensor, top_p_B: Tensor) -> Tensor:
    """Mask what follows once the more likely tokens already reach `top_p`; 1 keeps all."""
    probs_BW = logits_BW.softmax(-1)
    width = probs_BW.size(-1)
    top_p_B1 = top_p_B.to(float64_device(probs_BW.device)).unsqueeze(-1)
    # Rounded sums reach 1 before the last token, so 1 must not be compared like other values.
    off_B1 = top_p_B1 == 1
    # The nucleus nearly always lies within the first thousand tokens, and topk is 10x quicker than
    # a sort of 129,280; where it does not (a flat distribution), all tokens are sorted.
    for k in (min(_CANDIDATES, width), width):
        best_BK = with_float64(probs_BW.topk(k, dim=-1).values)
        reached_BK = best_BK.cumsum(-1, dtype=torch.float64)
        if k == width or bool(((reached_BK[:, -1:] >= top_p_B1) | off_B1).all()):
            break
    # A token stays while the mass before it falls short of top_p: the first always, but for NaN.
    count_B1 = (reached_BK - best_BK < top_p_B1).sum(-1, keepdim=True).clamp(min=1)
    floor_B1 = best_BK.gather(-1, count_B1 - 1).masked_fill(off_B1, 0)
    return logits_BW.masked_fill(probs_BW < floor_B1.to(probs_BW.device), -torch.inf)


def keep_min_p(logits_BW: Tensor, min_p_B: Tensor) -> Tensor:
    """Mask tokens less likely than `min_p` times the most likely token of their row."""
    probs_BW = logits_BW.softmax(-1)
    floor_B1 = probs_BW.amax(-1, keepdim=True) * min_p_B.unsqueeze(-1)
    return logits_BW.masked_fill(probs_BW < floor_B1, -torch.inf)


def inverse_cdf(probs_BW: Tensor, draws_B: Tensor) -> Tensor:
    """Return the first token of each row at which the summed probability reaches its draw, [B].

    In a large vocabulary the block that holds the token is found first, then the token in it: of
    all tokens only the sums of blocks are made. A token of probability 0 is never returned.

    Args:
        probs_BW: fp32.
        draws_B: fp64, in (0, 1); shares of the row's sum.
    """
    width, device = probs_BW.size(-1), probs_BW.device
    draws_B1 = draws_B.to(float64_device(device)).unsqueeze(-1)
    if width <= _CANDIDATES:
        summed_BW = with_float64(probs_BW).cumsum(-1, dtype=torch.float64)
        targets_B1 = draws_B1 * summed_BW[:, -1:]
        ids_B1 = torch.searchsorted(summed_BW, targets_B1)
        return ids_B1.squeeze(-1).clamp(max=width - 1).to(device)
    padding = -width % _BLOCK
    blocks_BYb = (F.pad(probs_BW, (0, padding)) if padding else probs_BW).unflatten(
        -1, (-1, _BLOCK)
    )
    reached_BY = with_float64(blocks_BYb.sum(-1)).cumsum(-1, dtype=torch.float64)
    targets_B1 = draws_B1 * reached_BY[:, -1:]
    # Clamped for NaN, which is beyond all sums.
    block_B1 = torch.searchsorted(reached_BY, targets_B1).clamp(max=reached_BY.size(-1) - 1)
    before_B1 = F.pad(reached_BY, (1, 0)).gather(-1, block_B1)
    rows_B = torch.arange(len(probs_BW), device=device)
    block_Bb = with_float64(blocks_BYb[rows_B, block_B1.squeeze(-1).to(device)])
    inside_Bb = block_Bb.cumsum(-1, dtype=torch.float64) + before_B1
    # The two sums of a block differ in the last bits: the draw must not fall behind its end.
    targets_B1 = torch.minimum(targets_B1, inside_Bb[:, -1:])
    ids_B1 = block_B1 * _BLOCK + torch.searchsorted(inside_Bb, targets_B1)
    return ids_B1.squeeze(-1).clamp(max=width - 1).to(device)


class RowSettings(NamedTuple):
    """How each row is drawn: columns on the CPU."""

    keys_L: Tensor
    """int64, the bits of `sequence_keys`."""
    temperatures_L: Tensor
    """float32; 0 is greedy."""
    top_k_L: Tensor
    """int64; 0 is off."""
    top_p_L: Tensor
    """float64; 1 is off."""
    min_p_L: Tensor
    """float32; 0 is off."""

    def of(self, rows: Tensor | Sequence[int]) -> "RowSettings":
        """Take these rows."""
        return RowSettings(*(column[rows] for column in self))


class Draws(NamedTuple):
    """What was drawn, where the logits are."""

    ids_L: Tensor
    logprobs_L: Tensor
    """float32, of the divided logits before the filters."""
    normalizers_L: Tensor
    """float32: log sum exp of the divided logits."""


def sample_rows(
    logits_LW: Tensor, settings: RowSettings, positions_L: Tensor, *, limit: int
) -> Draws:
    """Draw the token of each row that will stand at its position.

    A row's result depends on nothing but the row, its settings and its position, to the last bit
    on a CPU. Logits that are not finite give a valid id and a log-probability that is not either.

    Args:
        logits_LW: float32.
        settings: of the rows.
        positions_L: int64, on the CPU.
        limit: tokens that may be drawn, the first ones; log-probabilities count the others too.
    """
    if native.serves(logits_LW) and logits_LW.dtype is torch.float32:
        return Draws(*sampling.sample(logits_LW, *settings, positions_L, limit=limit))
    device = logits_LW.device
    temperatures_L = settings.temperatures_L.to(device)
    scaled_LW = divided(logits_LW, temperatures_L)[:, :limit]
    ids_L = scaled_LW.argmax(-1)
    drawn = (settings.temperatures_L != 0).nonzero().flatten()
    if len(drawn):
        keys = settings.keys_L[drawn].numpy().view(np.uint64)
        draws = torch.from_numpy(uniforms(keys, positions_L[drawn].numpy()))
        kept = _filtered(scaled_LW[drawn.to(device)], settings.of(drawn))
        ids_L[drawn.to(device)] = inverse_cdf(kept.softmax(-1), draws)
    return Draws(ids_L, *score_rows(logits_LW, ids_L, temperatures_L, limit=limit))


def _filtered(scaled_LW: Tensor, settings: RowSettings) -> Tensor:
    """Mask what the filters drop, in a tensor of the caller's; rows without them cost nothing."""
    device = scaled_LW.device
    for keep, column_L, off, its_device in (
        (keep_top_k, settings.top_k_L, 0, device),
        (keep_top_p, settings.top_p_L, 1, float64_device(device)),
        (keep_min_p, settings.min_p_L, 0, device),
    ):
        rows = (column_L != off).nonzero().flatten()
        if len(rows):
            there = rows.to(device)
            scaled_LW[there] = keep(scaled_LW[there], column_L[rows].to(its_device))
    return scaled_LW


class Sampler:
    """Draw one token for each row of a batch, each row with settings of its own.

    Args:
        configs: settings of each sequence.
        sequence_ids: number of each sequence under its seed; equal (seed, id) draw equally.
        device: where the logits live.
    """

    def __init__(
        self,
        configs: Sequence[SamplingConfig],
        sequence_ids: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if any(config.penalties or config.logit_bias for config in configs):
            raise ConfigError(
                "penalties and logit_bias have no effect here: they are for requests of the engine"
            )
        self._configs = tuple(configs)
        self._sequence_ids = tuple(sequence_ids)
        self._device = torch.device(device)
        self._keys_B = sequence_keys([config.seed for config in configs], sequence_ids)
        self._filters = frozenset[str]().union(*(config.filters for config in configs))
        temperatures_B = self._column("temperature", torch.float32)
        self._greedy_B = temperatures_B == 0
        self._all_greedy = all(config.temperature == 0 for config in configs)
        self._any_greedy = any(config.temperature == 0 for config in configs)
        self.temperatures_B = temperatures_B.masked_fill(self._greedy_B, 1.0)
        """fp32 divisor of the logits of each row; 1 where the row is greedy."""
        self.is_unscaled = all(config.temperature in (0, 1) for config in configs)
        """All those divisors are 1."""
        self._top_k_B = self._column("top_k", torch.int64)
        self._top_p_B = self._column("top_p", torch.float64, float64_device(self._device))
        self._min_p_B = self._column("min_p", torch.float32)

    def _column(self, name: str, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        values = [getattr(config, name) for config in self._configs]
        return torch.tensor(values, dtype=dtype, device=device or self._device)

    def select(self, rows: Sequence[int]) -> "Sampler":
        """Make the sampler of these rows alone, in this order; their draws stay what they were."""
        return Sampler(
            [self._configs[row] for row in rows],
            [self._sequence_ids[row] for row in rows],
            self._device,
        )

    def filtered(self, logits_BW: Tensor) -> Tensor:
        """Divide by the temperature and set what the filters drop to -inf, in fp32."""
        scaled_BW = logits_BW.float()
        if not self.is_unscaled:
            scaled_BW = scaled_BW / self.temperatures_B.unsqueeze(-1)
        if "top_k" in self._filters:
            scaled_BW = keep_top_k(scaled_BW, self._top_k_B)
        if "top_p" in self._filters:
            scaled_BW = keep_top_p(scaled_BW, self._top_p_B)
        if "min_p" in self._filters:
            scaled_BW = keep_min_p(scaled_BW, self._min_p_B)
        return scaled_BW

    def __call__(
        self, logits_BW: Tensor, positions_B: Sequence[int] | npt.NDArray[np.int64]
    ) -> Tensor:
        """Draw the token of each row [B] that will stand at `positions_B` of its sequence.

        NaN logits give a valid but meaningless id: callers look at the log-probability, which is
        NaN then, as they read it anyway and a test here would cost a device synchronisation.
        """
        if self._all_greedy:
            return logits_BW.argmax(-1)
        draws_B = torch.from_numpy(uniforms(self._keys_B, positions_B))
        ids_B = inverse_cdf(self.filtered(logits_BW).softmax(-1), draws_B)
        return (
            torch.where(self._greedy_B, logits_BW.argmax(-1), ids_B) if self._any_greedy else ids_B
        )
