"""Rotary positions: RoPE (arXiv 2104.09864), YaRN (2309.00071) and Llama 3.1's stretching.

Shapes: B sequences, T new tokens, R rotated width, r = R/2 frequencies.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ziphius.models.config import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)


@dataclass(frozen=True)
class Rope:
    """Cosines and sines for the positions of one forward pass, in float32."""

    cos_BTr: Tensor
    sin_BTr: Tensor


def build_rope(config: ModelConfig, positions_BT: Tensor) -> Rope:
    """Compute the rotation of every position; each attention layer of the model shares it."""
    width = config.qk_rope_head_dim if config.attention == "mla" else config.head_dim
    assert width is not None
    frequencies_r = _frequencies_on(
        positions_BT.device, width, config.rope_theta, config.rope_scaling
    )
    angles_BTr = positions_BT[..., None].float() * frequencies_r
    multiplier = rope_multiplier(config.rope_scaling)
    return Rope(angles_BTr.cos() * multiplier, angles_BTr.sin() * multiplier)


@cache
def rope_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return the r = width/2 angular frequencies, stretched as `scaling` says; read only."""
    exponents_r = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    frequencies_r = 1.0 / theta**exponents_r
    match scaling:
        case YarnScaling():
            return _yarn(frequencies_r, width, theta, scaling)
        case LinearScaling():
            return frequencies_r / scaling.factor
        case Llama3Scaling():
            return _llama3(frequencies_r, scaling)
        case None:
            return frequencies_r


@cache
def _frequencies_on(
    device: torch.device, width: int, theta: float, scaling: RopeScaling | None
) -> Tensor:
    """Return the frequencies where they are used: sent there once, not at every pass."""
    return rope_frequencies(width, theta, scaling).to(device)


def rope_multiplier(scaling: RopeScaling | None) -> float:
    """Return the factor on cos and sin: YaRN's attention temperature where it sits in RoPE.

    V2-Lite and V3 set mscale = mscale_all_dim, which makes it 1 and moves the temperature into the
    softmax scale (`ModelConfig.softmax_scale`).
    """
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    multiplier = yarn_temperature(scaling.factor, scaling.mscale or 1.0)
    if scaling.mscale_all_dim:
        multiplier /= yarn_temperature(scaling.factor, scaling.mscale_all_dim)
    return multiplier * (scaling.attn_factor or 1.0)


def yarn_temperature(factor: float, mscale: float) -> float:
    """Return 0.1 mscale ln(factor) + 1 (YaRN, section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0


def _yarn(frequencies_r: Tensor, width: int, theta: float, scaling: YarnScaling) -> Tensor:
    def frequency_index(rotations: float) -> float:
        """Index of the frequency that turns `rotations` times over the original context."""
        context = scaling.original_max_position_embeddings
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = frequency_index(scaling.beta_fast), frequency_index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    index_r = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    # 0.001 keeps a band of no width from dividing by zero. Beyond the frequencies a band has a
    # negative width: what comes of it is odd, and the same in DeepSeek's code and transformers.
    stretch_r = ((index_r - low) / (high - low or 0.001)).clamp(0, 1)
    return frequencies_r * (1 - stretch_r) + frequencies_r / scaling.factor * stretch_r


def _llama3(frequencies_r: Tensor, scaling: Llama3Scaling) -> Tensor:
    rotations_r = scaling.original_max_position_embeddings * frequencies_r / (2 * math.pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    keep_r = ((rotations_r - scaling.low_freq_factor) / band).clamp(0, 1)
    return frequencies_r * keep_r + frequencies_r / scaling.factor * (1 - keep_r)
