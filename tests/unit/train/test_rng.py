import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ziphius.train.rng import DrawWatch, rng_state, seed_generators, set_rng_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _states_of_other_tests() -> Iterator[None]:
    state = rng_state(CPU)
    yield
    set_rng_state(*state, CPU)


def draw() -> list[float]:
    """One number from each kind of draw; normal ones leave half a pair behind."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_all_generators_go_on_where_they_were() -> None:
    draw()
    tensors, values = rng_state(CPU)
    written = {name: tensor.clone() for name, tensor in tensors.items()}
    text = json.dumps(values)
    expected = [draw() for _ in range(3)]
    set_rng_state(written, json.loads(text), CPU)
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_seed_decides_all_generators(seed: int) -> None:
    seed_generators(seed)
    first = draw()
    seed_generators(seed)
    assert draw() == first
    seed_generators(seed + 1)
    assert all(new != old for new, old in zip(draw(), first, strict=True))


def test_the_copy_does_not_follow_the_generators() -> None:
    tensors, _ = rng_state(CPU)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for _ in range(700):
        draw()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "one_draw",
    [
        random.random,
        np.random.rand,
        lambda: torch.rand(()),
        lambda: random.seed(1),
    ],
)
def test_the_watch_sees_a_draw(one_draw) -> None:
    watch = DrawWatch(CPU)
    assert not watch.has_drawn()
    one_draw()
    assert watch.has_drawn()
    watch.go_on(earlier_starts_drew=False)
    assert not watch.has_drawn()
    watch.go_on(earlier_starts_drew=True)
    assert watch.has_drawn()


def test_generators_of_their_own_are_not_the_watchs_concern() -> None:
    watch = DrawWatch(CPU)
    torch.rand(3, generator=torch.Generator().manual_seed(0))
    np.random.default_rng(0).random()
    random.Random(0).random()
    assert not watch.has_drawn()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_generator_of_an_accelerator_goes_on() -> None:
    device = torch.device("cuda")
    torch.rand(3, device=device)
    state = rng_state(device)
    expected = torch.rand(3, device=device)
    set_rng_state(*state, device)
    assert torch.equal(torch.rand(3, device=device), expected)
