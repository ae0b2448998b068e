import pytest
import torch

from ziphius.train.optim import muon
from ziphius.train.optim.muon import Muon, newton_schulz

SETTINGS = {
    "moments": torch.float32,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "momentum": 0.95,
    "update_rms": 0.18,
    "newton_schulz_steps": 5,
}


def one_step(weight: torch.Tensor, gradient: torch.Tensor, **group) -> torch.Tensor:
    """Return what a first step with the learning rate 1 adds to a weight."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Muon([{"params": [parameter], "weight_decay": 0.0} | group], **SETTINGS)
    optimizer.param_groups[0]["lr"] = 1.0
    parameter.grad = gradient
    optimizer.step()
    return parameter.detach() - weight


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8), (3, 8, 20)])
def test_singular_values_come_near_1(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrix, 5)
    assert found.shape == matrix.shape
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u @ vh
    assert torch.nn.functional.cosine_similarity(found.flatten(), nearest.flatten(), dim=0) > 0.97


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(newton_schulz(torch.zeros(4, 6), 5), torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (4, 16, 16)])
def test_updates_have_a_fixed_size_against_the_gradient(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moved = one_step(torch.zeros(shape), 1e-4 * gradient, matrices=1)
    assert moved.square().mean().sqrt() == pytest.approx(0.18, rel=0.15)
    assert (moved * gradient).sum() < 0.0


def test_each_expert_is_a_matrix_of_its_own() -> None:
    gradient = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(2))
    together = one_step(torch.zeros(3, 8, 12), gradient, matrices=1)
    alone = torch.stack([one_step(torch.zeros(8, 12), g, matrices=1) for g in gradient])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_gate_and_up_are_two_matrices() -> None:
    gradient = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(3))
    together = one_step(torch.zeros(3, 8, 12), gradient, matrices=2)
    halves = [one_step(torch.zeros(3, 4, 12), g, matrices=1) for g in gradient.chunk(2, dim=1)]
    torch.testing.assert_close(together, torch.cat(halves, dim=1), rtol=1e-5, atol=1e-6)


def test_momentum_looks_ahead_and_weights_decay() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = torch.randn(2, 6, 6, generator=generator)
    parameter = torch.nn.Parameter(torch.ones(6, 6))
    groups = [{"params": [parameter], "weight_decay": 0.1, "matrices": 1}]
    optimizer = Muon(groups, **SETTINGS)
    optimizer.param_groups[0]["lr"] = 0.5
    parameter.grad = first
    optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = second
    optimizer.step()
    mean = 0.95 * 0.05 * first + 0.05 * second
    ahead = 0.95 * mean + 0.05 * second
    update = newton_schulz(ahead, 5) * 0.18 * 6**0.5
    torch.testing.assert_close(parameter.detach(), before * 0.95 - 0.5 * update)
    assert list(optimizer.state[parameter]) == ["momentum"]


def test_other_groups_are_adamws() -> None:
    gradient = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    moved = one_step(torch.zeros(4, 4), gradient, matrices=0)
    torch.testing.assert_close(moved, -gradient.sign())


@pytest.mark.parametrize("matrices", [1, 2])
def test_parameters_that_are_updated_at_once_move_as_alone(monkeypatch, matrices: int) -> None:
    """As on an accelerator, where those of one shape are stacked."""
    generator = torch.Generator().manual_seed(4)
    gradients = [torch.randn(3, 8, 12, generator=generator) for _ in range(4)]
    moved = []
    for together in (False, True):
        if together:
            monkeypatch.setattr(muon, "_alike", lambda parameters: [parameters])
        members = [torch.nn.Parameter(torch.ones(3, 8, 12)) for _ in gradients]
        group = {"params": members, "weight_decay": 0.1, "matrices": matrices}
        optimizer = Muon([group], **SETTINGS)
        optimizer.param_groups[0]["lr"] = 1e-2
        for _ in range(2):
            for member, gradient in zip(members, gradients, strict=True):
                member.grad = gradient.clone()
            optimizer.step()
        moved.append([member.detach() for member in members])
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-6)
    assert not torch.equal(moved[1][0], moved[1][1])
