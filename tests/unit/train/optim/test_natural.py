"""`train/optim/natural.py` against its formula in float64, and on a policy made for it."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ziphius.train.optim.adamw import AdamW
from ziphius.train.optim.natural import Natural, inverse_root

Array = NDArray[np.float64]
SETTINGS = {"momentum": 0.9, "covariance": 0.8, "damping": 0.02, "refresh_steps": 1}


def optimizer_of(
    parameters: Sequence[torch.nn.Parameter], *, lr: float = 1.0, matrices: int = 1, **changes: Any
) -> Natural:
    group = {"params": list(parameters), "weight_decay": 0.0, "matrices": matrices}
    optimizer = Natural([group], **(SETTINGS | changes))
    optimizer.param_groups[0]["lr"] = lr
    return optimizer


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(optimizer: Natural, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return what a step adds to each parameter."""
    parameters = optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return [p.detach() - old for p, old in zip(parameters, before, strict=True)]


def highest(matrix: Array) -> float:
    """Bound the largest eigenvalue as the optimizer does, by one norm of the fourth power."""
    return float(np.linalg.norm(np.linalg.matrix_power(matrix, 4), np.inf) ** 0.25)


def root(matrix: Array, damping: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    raised = values.clip(0) + damping * highest(matrix)
    return np.asarray(vectors / np.sqrt(raised) @ vectors.T)


class Reference:
    """The formula for one matrix or vector in float64, from all gradients so far."""

    def __init__(self, **settings: float) -> None:
        self.settings = SETTINGS | settings
        self.step = 0
        self.mean: Array | float = 0.0
        self.covariances: list[Array | float] = [0.0, 0.0]
        self.roots: list[Array] = []

    def direction(self, gradient: Array) -> Array:
        s = self.settings
        self.step += 1
        self.mean = s["momentum"] * self.mean + (1 - s["momentum"]) * gradient
        fresh = max(1 - s["covariance"], 1 / self.step)
        outer = (
            [gradient**2] if gradient.ndim == 1 else [gradient @ gradient.T, gradient.T @ gradient]
        )
        self.covariances = [
            (1 - fresh) * old + fresh * new
            for old, new in zip(self.covariances, outer, strict=False)
        ]
        if gradient.ndim == 1:
            [square] = self.covariances
            return np.asarray(self.mean / (square + s["damping"] * np.max(square)))
        sizes = [np.trace(covariance) for covariance in self.covariances]
        if self.step % s["refresh_steps"] == 0 or self.step < s["refresh_steps"]:
            self.roots = [
                root(covariance / size, s["damping"])
                for covariance, size in zip(self.covariances, sizes, strict=True)
            ]
        return np.asarray(self.roots[0] @ self.mean @ self.roots[1] / np.sqrt(sizes[0] * sizes[1]))


@pytest.mark.parametrize("refresh_steps", [1, 3])
def test_steps_are_those_of_the_formula(refresh_steps: int) -> None:
    """A matrix, a tall one, a vector and a stack: roots times the mean, all at an RMS of 1."""
    shapes = [(6, 8), (9, 2), (5,), (2, 4, 3)]
    parameters = [torch.nn.Parameter(randn(*shape, seed=7)) for shape in shapes]
    optimizer = optimizer_of(parameters, lr=0.1, refresh_steps=refresh_steps)
    optimizer.param_groups[0]["weight_decay"] = 0.3
    references = [[Reference(refresh_steps=refresh_steps) for _ in range(2)] for _ in shapes]
    for number in range(8):
        gradients = [
            10.0**-place * randn(*shape, seed=10 * number + place)
            for place, shape in enumerate(shapes)
        ]
        before = [parameter.detach().double().numpy() for parameter in parameters]
        parts = [g.double().numpy() if g.dim() == 3 else [g.double().numpy()] for g in gradients]
        expected = [
            np.stack([r.direction(part) for r, part in zip(some, each, strict=False)])
            for some, each in zip(references, parts, strict=True)
        ]
        count = sum(direction.size for direction in expected)
        rms = np.sqrt(sum((direction**2).sum() for direction in expected) / count)
        moved = step(optimizer, gradients)
        for old, actual, direction in zip(before, moved, expected, strict=True):
            wanted = -0.1 * direction.reshape(old.shape) / rms - 0.1 * 0.3 * old
            np.testing.assert_allclose(actual.numpy(), wanted, rtol=2e-4, atol=2e-5)


def test_at_every_refresh_it_is_the_root_of_the_whole_covariance() -> None:
    """L^-1/2 G R^-1/2 without any scaling in between."""
    gradient = 1e-3 * randn(4, 7)
    matrix = gradient.double().numpy()
    moved = step(optimizer_of([torch.nn.Parameter(torch.zeros(4, 7))]), [gradient])[0]
    expected = -root(matrix @ matrix.T, 0.02) @ matrix @ root(matrix.T @ matrix, 0.02)
    expected /= np.sqrt((expected**2).mean())
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_update_of_all_parameters_has_a_root_mean_square_of_1() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (5,), (2, 3, 3))]
    optimizer = optimizer_of(parameters, lr=0.25)
    for number in range(3):
        gradients = [1e-6 * randn(*p.shape, seed=number) for p in parameters]
        moved = torch.cat([m.flatten() for m in step(optimizer, gradients)])
        assert moved.square().mean().sqrt() == pytest.approx(0.25, rel=1e-4)


def test_the_size_of_gradients_changes_nothing() -> None:
    moved = []
    for size in (1.0, 1e-6, 1e6):
        optimizer = optimizer_of([torch.nn.Parameter(torch.zeros(5, 7))], refresh_steps=2)
        moved.append([step(optimizer, [size * randn(5, 7, seed=s)])[0] for s in range(4)])
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("kind", ["whole", "rank 1", "graded", "zeros"])
def test_roots_are_those_of_the_eigenvalues(size: int, damping: float, kind: str) -> None:
    factor = randn(2, size, size, seed=size).double()
    if kind == "rank 1":
        factor[..., 1:] = 0.0
    elif kind == "graded":
        factor *= torch.logspace(0, -8, size)
    elif kind == "zeros":  # as embeddings of tokens that never came: LAPACK fails on large ones
        factor[:, size // 3 + 1 :] = 0.0
    matrices = factor @ factor.mT
    expected = np.stack([root(matrix.numpy(), damping) for matrix in matrices])
    found = inverse_root(matrices, damping).double()
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    for matrix in matrices.numpy():
        largest = np.linalg.eigvalsh(matrix)[-1]
        assert largest * (1 - 1e-9) <= highest(matrix) <= size**0.125 * largest * (1 + 1e-9)


def test_gate_and_up_and_all_experts_are_matrices_of_their_own() -> None:
    gradients = [randn(3, 8, 6, seed=seed) for seed in range(4)]
    together = optimizer_of([torch.nn.Parameter(torch.zeros(3, 8, 6))], matrices=2)
    halves = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(6)]
    alone = optimizer_of(halves)
    for gradient in gradients:
        parts = [half for expert in gradient for half in expert.chunk(2)]
        [moved] = step(together, [gradient])
        expected = torch.cat(step(alone, parts)).reshape(3, 8, 6)
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    as_one = optimizer_of([torch.nn.Parameter(torch.zeros(3, 8, 6))], matrices=1)
    assert not torch.allclose(step(as_one, [gradients[0]])[0], moved, atol=0.1)


def test_a_group_without_matrices_is_one_of_single_ones() -> None:
    moved = [
        step(optimizer_of([torch.nn.Parameter(torch.zeros(4, 6))], matrices=count), [randn(4, 6)])
        for count in (0, 1)
    ]
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_vectors_are_divided_by_their_squares(shape: tuple[int, ...]) -> None:
    optimizer = optimizer_of([torch.nn.Parameter(torch.zeros(shape))])
    gradient = randn(*shape).double()
    [moved] = step(optimizer, [gradient.float()])
    expected = gradient / (gradient**2 + 0.02 * (gradient**2).max())
    expected /= -expected.square().mean().sqrt()
    torch.testing.assert_close(moved.double(), expected, rtol=1e-5, atol=1e-6)
    assert set(optimizer.state[optimizer.param_groups[0]["params"][0]]) == {
        *("step", "momentum", "square")
    }


def test_what_never_had_a_gradient_stands_still_and_harms_nobody() -> None:
    shapes = [(5, 7), (2, 4, 6), (5,), (4, 3)]
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = optimizer_of(parameters, refresh_steps=2)
    for number in range(6):
        stacked = randn(2, 4, 6, seed=number)
        stacked[1] = 0.0
        gradients = [torch.zeros(5, 7), stacked, torch.zeros(5), None]
        moved = step(optimizer, gradients)
        assert [m.count_nonzero().item() for m in moved] == [0, 24, 0, 0]
        assert moved[1][0].square().mean() > 1.0
    assert not optimizer.state[parameters[3]]
    every = [torch.zeros(shape) for shape in shapes]
    fresh = optimizer_of([torch.nn.Parameter(torch.ones(shape)) for shape in shapes])
    assert all(m.count_nonzero() == 0 for m in step(fresh, every))


def test_the_first_gradient_of_an_expert_between_two_refreshes_leaves_others_their_step() -> None:
    """Roots of no covariance at all are huge, and would take the whole step."""
    parameter = torch.nn.Parameter(torch.zeros(3, 16, 16))
    optimizer = optimizer_of([parameter], refresh_steps=10)
    sizes = []
    for number in range(1, 30):
        gradient = 1e-3 * randn(3, 16, 16, seed=number)
        gradient[1] *= number > 24
        [moved] = step(optimizer, [gradient])
        sizes.append(moved.square().mean((1, 2)).sqrt().tolist())
    assert sizes[23][1] == 0.0
    for others, late, _ in sizes[24:]:
        assert others > 0.5
        assert 0.02 < late < 2.0


def test_roots_are_as_old_as_the_last_refresh() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = optimizer_of([parameter], refresh_steps=3)
    roots = []
    for number in range(1, 11):
        step(optimizer, [randn(4, 6, seed=number)])
        roots.append(optimizer.state[parameter]["rows_root"].clone())
    fresh = [n for n in range(2, 11) if not torch.equal(roots[n - 1], roots[n - 2])]
    assert fresh == [2, 3, 6, 9]  # each of the first steps, then every third


@pytest.mark.parametrize("steps_before", [2, 7])
def test_a_state_that_comes_back_goes_on_bit_for_bit(steps_before: int) -> None:
    shapes = [(5, 7), (6,), (2, 4, 3)]
    parameters = [torch.nn.Parameter(randn(*shape)) for shape in shapes]
    optimizer = optimizer_of(parameters, lr=0.01, refresh_steps=4)

    def gradients(number: int) -> list[torch.Tensor]:
        return [randn(*shape, seed=number) for shape in shapes]

    for number in range(steps_before):
        step(optimizer, gradients(number))
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = optimizer_of(copies, lr=0.01, refresh_steps=4)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states = [tensor for state in other.state.values() for tensor in state.values()]
    assert all(isinstance(t, torch.Tensor) and t.dtype == torch.float32 for t in states)
    for number in range(steps_before, steps_before + 6):
        step(optimizer, gradients(number))
        step(other, gradients(number))
        for a, b in zip(parameters, copies, strict=True):
            assert torch.equal(a, b)


NOISE = 30.0
"""How much larger the feature that says nothing is than the others."""


def policy_gain(name: str, seed: int) -> float:
    """Teach a linear policy by REINFORCE, one that is right half of the time; return what it gains.

    Its features are turned, so that no weight stands for one of them alone.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    rule = torch.randn(4, 16, generator=generator)
    rule[:, 0] = 0.0
    scale = torch.ones(16)
    scale[0] = NOISE

    def asked(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(count, 16, generator=generator)
        return (features * scale) @ turn.T, (features @ rule.T).argmax(1)

    weight = torch.nn.Parameter(0.3 * rule @ turn.T)
    group = {"params": [weight], "weight_decay": 0.0, "matrices": 1}
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "natural": lambda: Natural(
            [group], momentum=0.9, covariance=0.98, damping=0.01, refresh_steps=5
        ),
        "adamw": lambda: AdamW([group], moments=torch.float32, betas=(0.9, 0.95), eps=1e-8),
        "sgd": lambda: torch.optim.SGD([group], momentum=0.9),
    }
    optimizer = optimizers[name]()
    held_out, answers = asked(2_000)

    @torch.no_grad()
    def reward() -> float:
        return float((held_out @ weight.T).softmax(1).gather(1, answers[:, None]).mean())

    before = reward()
    for _ in range(60):
        features, answers_now = asked(64)
        logprobs = (features @ weight.T).log_softmax(1)
        taken = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
        rewards = (taken[:, 0] == answers_now).float()
        optimizer.zero_grad()
        (-(logprobs.gather(1, taken)[:, 0] * (rewards - rewards.mean())).mean()).backward()
        assert weight.grad is not None
        size = float(weight.grad.square().mean().sqrt()) if name == "sgd" else 1.0
        optimizer.param_groups[0]["lr"] = 3e-3 / max(size, 1e-9)
        optimizer.step()
    return reward() - before


def test_noise_in_one_direction_does_not_take_the_whole_step() -> None:
    """At one size of the updates: the plain step lowers the reward, Adam's hardly moves it."""
    gains = {
        name: [policy_gain(name, seed) for seed in range(4)] for name in ("natural", "adamw", "sgd")
    }
    assert min(gains["natural"]) > 0.06
    assert max(gains["adamw"]) < 0.04
    assert sum(gains["sgd"]) / 4 < -0.02
