import math

import pytest
import torch

from tests.tiny import grouped_config, latent_config
from ziphius.models.config import LinearScaling, Llama3Scaling, YarnScaling
from ziphius.models.rope import (
    build_rope,
    rope_frequencies,
    rope_multiplier,
)

V3 = YarnScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)


def yarn(**changes):
    return YarnScaling(**({"factor": 40.0, "original_max_position_embeddings": 4096} | changes))


def test_yarn_frequencies_of_v3():
    expected = {
        0: 1.0,
        1: 0.7498942,
        10: 0.05623413,
        11: 0.03900693,
        15: 0.008334509,
        22: 1.778279e-4,
        23: 3.333804e-5,
        31: 3.333804e-6,
    }
    frequencies_r = rope_frequencies(64, 10_000.0, V3)
    assert frequencies_r.shape == (32,)
    for index, value in expected.items():
        assert frequencies_r[index].item() == pytest.approx(value, rel=1e-6)


def test_yarn_leaves_fast_frequencies_and_divides_slow_ones():
    plain_r = rope_frequencies(64, 10_000.0, None)
    for index in range(32):
        assert plain_r[index].item() == pytest.approx(10_000 ** (-index / 32), rel=1e-6)
    ratio_r = rope_frequencies(64, 10_000.0, V3) / plain_r
    # the band runs from index 10 (32 rotations over 4,096 tokens) to 23 (one rotation)
    assert ratio_r[:11].eq(1).all()
    torch.testing.assert_close(ratio_r[23:], torch.full((9,), 1 / 40))
    assert (ratio_r[11:23].diff() < 0).all()


def test_yarn_with_a_band_of_no_width_is_a_step():
    # over 6 tokens even the fastest frequency turns less than once: the band is [0, 0]
    scaling = yarn(factor=4.0, original_max_position_embeddings=6)
    ratio_r = rope_frequencies(8, 2.0, scaling) / rope_frequencies(8, 2.0, None)
    assert ratio_r.tolist() == [1.0, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("context", "theta", "ratio"),
    [
        # every frequency is fast: the band lies beyond the last one
        (2**31 - 1, 2.0, 0.25),
        # every frequency is slow: the band ends before the first one
        (1, 500.0, 1.0),
    ],
)
def test_a_band_beyond_the_frequencies_is_what_transformers_makes_of_it(context, theta, ratio):
    scaling = yarn(factor=4.0, original_max_position_embeddings=context)
    ratio_r = rope_frequencies(8, theta, scaling) / rope_frequencies(8, theta, None)
    assert ratio_r.eq(ratio).all()


def test_linear_scaling_divides_all():
    ratio_r = rope_frequencies(8, 500.0, None) / rope_frequencies(
        8, 500.0, LinearScaling(factor=4.0)
    )
    torch.testing.assert_close(ratio_r, torch.full((4,), 4.0))


def test_llama3_scaling_follows_the_published_rule():
    scaling = Llama3Scaling(
        factor=8.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    frequencies_r = rope_frequencies(128, 500_000.0, scaling)
    kinds = set()
    for index in range(64):
        plain = 500_000.0 ** (-index / 64)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            kind, expected = "kept", plain
        elif wavelength > 8192 / 1:
            kind, expected = "divided", plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            kind, expected = "between", (1 - smooth) * plain / 8 + smooth * plain
        kinds.add(kind)
        assert frequencies_r[index].item() == pytest.approx(expected, rel=1e-5)
    assert kinds == {"kept", "divided", "between"}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 1.0),
        (LinearScaling(factor=4.0), 1.0),
        (V3, 1.0),
        (yarn(mscale=0.707, mscale_all_dim=0.707), 1.0),
        (yarn(), 0.1 * math.log(40) + 1),
        (
            yarn(mscale=0.5, mscale_all_dim=2.0),
            (0.05 * math.log(40) + 1) / (0.2 * math.log(40) + 1),
        ),
    ],
)
def test_multiplier_on_cos_and_sin(scaling, expected):
    assert rope_multiplier(scaling) == pytest.approx(expected, rel=1e-12)
    config = grouped_config(rope_scaling=scaling)
    rope = build_rope(config, torch.arange(3)[None])
    torch.testing.assert_close(
        rope.cos_BTr.pow(2) + rope.sin_BTr.pow(2), torch.full((1, 3, 4), expected**2)
    )


@pytest.mark.parametrize(("config", "width"), [(latent_config(), 6), (grouped_config(), 8)])
def test_angles_are_position_times_frequency(config, width):
    positions_BT = torch.tensor([[0, 1, 7], [5, 163_839, 2]])
    rope = build_rope(config, positions_BT)
    frequencies_r = rope_frequencies(width, 10_000.0, config.rope_scaling).double()
    angles_BTr = positions_BT[..., None] * frequencies_r
    # at position 163,839 float32 leaves about 0.01 rad of the angle
    torch.testing.assert_close(rope.cos_BTr.double(), angles_BTr.cos(), rtol=0, atol=0.02)
    torch.testing.assert_close(rope.sin_BTr.double(), angles_BTr.sin(), rtol=0, atol=0.02)
    assert rope.cos_BTr.dtype == torch.float32
