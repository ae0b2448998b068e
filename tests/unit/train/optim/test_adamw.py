import copy

import pytest
import torch

from ziphius.train.optim.adamw import AdamW

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}


def trained(optimizer_class, steps: int = 20, **settings) -> list[torch.Tensor]:
    """Minimise a sum of squares of two tensors, the second without decay."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 8), (8,))
    ]
    groups = [
        {"params": parameters[:1], "weight_decay": 0.1},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    optimizer = optimizer_class(groups, **SETTINGS, **settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p - 1.0).square().sum() for p in parameters).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_float32_means_give_torchs_adamw() -> None:
    actual = trained(AdamW, moments=torch.float32)
    expected = trained(torch.optim.AdamW)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)


def test_bfloat16_means_stay_near_and_are_kept_narrow() -> None:
    narrow = trained(AdamW, moments=torch.bfloat16)
    wide = trained(AdamW, moments=torch.float32)
    for a, e in zip(narrow, wide, strict=True):
        assert not torch.equal(a, e)
        assert (a - e).abs().max() < 0.02


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_the_state_is_three_tensors_and_comes_back(moments: torch.dtype) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [AdamW([{"params": [w]}], moments=moments, **SETTINGS) for w in weights]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(3):
        weights[0].grad = torch.tensor([1.0, -2.0, 0.5])
        optimizers[0].step()
    state = optimizers[0].state[weights[0]]
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "step": torch.float32,
        "exp_avg": moments,
        "exp_avg_sq": moments,
    }
    with torch.no_grad():
        weights[1].copy_(weights[0])
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert optimizers[1].state[weights[1]]["exp_avg"].dtype == moments
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.tensor([0.3, 0.3, 0.3])
        optimizer.step()
    assert torch.equal(weights[0], weights[1])


def test_parameters_without_a_gradient_are_left_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW(
        [{"params": [weight], "weight_decay": 0.5}], moments=torch.float32, **SETTINGS
    )
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state[weight]
