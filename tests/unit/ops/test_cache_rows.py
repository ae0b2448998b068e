"""`ops/cache_rows.py`: rows in 8 bits, and how far they are from what they were."""

import pytest
import torch

from ziphius.ops.cache_rows import LARGEST, RowLayout, pack_rows, unpack_rows

LAYOUTS = [
    RowLayout(576, 128, 64),
    RowLayout(12, 128, 5),
    RowLayout(33, 16),
    RowLayout(200, 128, 3),
]
# Half of the last place: int8 rounds to whole numbers, e4m3 to 3 bits behind the first.
ROUNDING = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2.0**-4}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_numbers_are_rounded_within_their_group_and_the_last_ones_to_bfloat16(layout, dtype):
    rows_ZX = torch.randn(7, layout.width) * torch.logspace(-20, 20, 7)[:, None]
    packed_ZU = pack_rows(rows_ZX, layout, dtype)
    assert packed_ZU.dtype is torch.uint8
    assert packed_ZU.shape == (7, layout.size_bytes)
    found_ZX = unpack_rows(packed_ZU, layout, dtype)
    assert torch.equal(
        found_ZX[:, layout.rounded :], rows_ZX[:, layout.rounded :].bfloat16().float()
    )
    for first in range(0, layout.rounded, layout.scale_width):
        end = min(first + layout.scale_width, layout.rounded)
        group_ZX, own_ZX = rows_ZX[:, first:end], found_ZX[:, first:end]
        most_Z1 = group_ZX.abs().amax(-1, keepdim=True)
        bound_ZX = ROUNDING[dtype] * (most_Z1 if dtype is torch.int8 else group_ZX.abs())
        assert ((own_ZX - group_ZX).abs() <= bound_ZX * 1.0001 + most_Z1 * 2.0**-18).all()
        torch.testing.assert_close(own_ZX.abs().amax(-1, True), most_Z1, rtol=1e-6, atol=0)


def test_the_row_of_v3_has_the_bytes_of_flashmla():
    assert RowLayout(512 + 64, 128, 64).size_bytes == 656


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_row_hangs_on_nothing_beside_it(dtype):
    layout = RowLayout(200, 128, 3)
    rows_ZX = torch.randn(9, 200)
    packed_ZU = pack_rows(rows_ZX, layout, dtype)
    for row_X, packed_U in zip(rows_ZX, packed_ZU, strict=True):
        assert torch.equal(pack_rows(row_X, layout, dtype), packed_U)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_group_alone(dtype, value):
    layout = RowLayout(40, 16, 3)
    row_X = torch.randn(40)
    row_X[20] = value
    found_X = unpack_rows(pack_rows(row_X, layout, dtype), layout, dtype)
    assert not found_X[16:32].isfinite().any()
    assert found_X[:16].isfinite().all()
    assert found_X[32:].isfinite().all()


@pytest.mark.parametrize("dtype", LARGEST)
def test_zeros_and_what_is_almost_zero_become_zeros(dtype):
    layout = RowLayout(8, 4)
    row_X = torch.tensor([0, 0, 0, 0, 1e-40, -1e-38, 0, 1e-33])
    assert torch.equal(unpack_rows(pack_rows(row_X, layout, dtype), layout, dtype), torch.zeros(8))


@pytest.mark.parametrize("dtype", LARGEST)
def test_memory_that_was_never_written_is_zeros(dtype):
    layout = RowLayout(40, 16, 3)
    bytes_U = torch.zeros(layout.size_bytes, dtype=torch.uint8)
    assert torch.equal(unpack_rows(bytes_U, layout, dtype), torch.zeros(40))
