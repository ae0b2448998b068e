import torch

from tests.tiny import fill
from ziphius.models.layers import Embedding, FeedForward, Linear, RMSNorm


def test_rms_norm_divides_by_the_root_mean_square():
    norm = RMSNorm(3, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    # mean square of (1, 2, 2) is 3, and 3 + 0.5 is under the root
    expected_D = torch.tensor([1.0, 4.0, -2.0]) / 3.5**0.5
    torch.testing.assert_close(norm(torch.tensor([1.0, 2.0, 2.0])), expected_D)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    norm = RMSNorm(256, eps=1e-6)
    fill(norm, 0)
    norm.bfloat16()
    x_BD = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    x_exact_BD = x_BD.double()
    normed_BD = x_exact_BD / (x_exact_BD.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    expected_BD = normed_BD * norm.weight.double()
    assert norm(x_BD).dtype == torch.bfloat16
    # rounded once, after the weight: within half a step of bfloat16 and float32's own error
    assert ((norm(x_BD).double() - expected_BD).abs() <= expected_BD.abs() * 2.0**-8 * 1.001).all()


def test_rms_norm_survives_numbers_whose_squares_overflow_float16():
    norm = RMSNorm(4, eps=1e-6).half()
    norm.weight.data.fill_(1.0)
    assert torch.equal(norm(torch.full((4,), 6e4).half()), torch.ones(4).half())


def test_feed_forward_gates_with_silu():
    layer = FeedForward(2, 3)
    fill(layer, 0)
    x_D = torch.tensor([0.7, -1.1])
    gate_F, up_F = layer.gate_proj.weight @ x_D, layer.up_proj.weight @ x_D
    expected_D = layer.down_proj.weight @ (gate_F / (1 + (-gate_F).exp()) * up_F)
    torch.testing.assert_close(layer(x_D), expected_D)


def test_building_layers_draws_no_random_numbers():
    before = torch.get_rng_state()
    Linear(4, 4, bias=True)
    Embedding(4, 4)
    FeedForward(4, 4)
    assert torch.equal(torch.get_rng_state(), before)
