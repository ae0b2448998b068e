"""`ops/digest.py`: every bit and place counts; the kernel and its twin give one number."""

import pytest
import torch
from torch import Tensor

from tests.twins import draw
from ziphius.ops import native
from ziphius.ops.digest import tensor_digest


@pytest.mark.parametrize(
    "x",
    [
        draw(3, 5),
        draw(70, 33).t(),
        draw(41).bfloat16(),
        draw(42).bfloat16()[1:],
        draw(2**20 + 9),  # two parts of the twin, several threads of the kernel
        torch.arange(-9, 9, dtype=torch.int8),
        torch.tensor(True),
        torch.zeros(0),
    ],
    ids=lambda x: f"{x.dtype} {list(x.shape)}",
)
def test_the_kernel_gives_the_number_of_the_twin(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tensor_digest(x)
    assert -(2**63) <= found < 2**63
    assert tensor_digest(x.clone(memory_format=torch.contiguous_format)) == found
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    assert tensor_digest(x) == found


def test_any_bit_changes_it() -> None:
    x = draw(7)
    seen = {tensor_digest(x)}
    bits = x.view(torch.int32)
    for place in range(7):
        for bit in range(32):
            bits[place] ^= -(2**31) if bit == 31 else 1 << bit
            seen.add(tensor_digest(x))
            bits[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert len(seen) == 1 + 7 * 32


def test_what_sums_do_not_see_changes_it() -> None:
    """Signs of pairs, rows in another order, and numbers that are moved leave plain sums alone."""
    x = draw(8, 16)
    others = [x.flip(0), x.flip(1), x.roll(1), torch.cat((-x[:, :2], x[:, 2:]), 1), x.t()]
    assert len({tensor_digest(other) for other in (x, *others)}) == 1 + len(others)
