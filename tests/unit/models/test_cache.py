import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config
from ziphius.models.attention_spec import CacheSpec
from ziphius.models.cache import PagedCache, Span, token_bytes
from ziphius.ops.cache_rows import LARGEST, pack_rows, unpack_rows


@pytest.fixture
def cache():
    """Two layers of two parts, 1 and 2 wide, in four blocks of three slots; layer 1 is counted."""
    cache = PagedCache([CacheSpec((1, 2))] * 2, num_blocks=4, block_size=3)
    slots_M = torch.arange(12)
    cache.write(1, slots_M, slots_M[:, None] + 0.5, torch.stack((slots_M, -slots_M), dim=1))
    return cache


def test_rows_come_back_from_their_own_slots_in_every_part_of_the_layer(cache):
    slots_ZS = torch.tensor([[4, 0, 4], [11, 3, 7]])
    first, second = cache.read(1, slots_ZS)
    assert torch.equal(first, slots_ZS[..., None] + 0.5)
    assert torch.equal(second, torch.stack((slots_ZS, -slots_ZS), dim=-1).float())
    assert all(part.eq(0).all() for part in cache.read(0, slots_ZS))


def test_a_write_leaves_the_other_slots(cache):
    cache.write(1, torch.tensor([7, 2]), torch.tensor([[70.0], [20.0]]), torch.zeros(2, 2))
    first, _ = cache.read(1, torch.arange(12)[None])
    assert first.flatten().tolist() == [0.5, 1.5, 20, 3.5, 4.5, 5.5, 6.5, 70, 8.5, 9.5, 10.5, 11.5]


@pytest.mark.parametrize("span", [Span(2, 4, 2, 3), Span(5, 0, 3, 2), Span(0, 0, 1, 12)])
def test_a_span_is_read_without_a_copy(cache, span):
    slots_ZS = span.first + torch.arange(span.rows)[:, None] * span.stride
    slots_ZS = slots_ZS + torch.arange(span.length)
    for view, copied, part in zip(
        cache.read(1, span), cache.read(1, slots_ZS), cache.parts[1], strict=True
    ):
        assert torch.equal(view, copied)
        assert view.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()


def test_blocks_are_copied_whole_in_every_layer_and_part(cache):
    before = cache.read(1, torch.arange(12).view(4, 3))
    cache.copy_blocks([1, 1], [3, 0])
    for after, old in zip(cache.read(1, torch.arange(12).view(4, 3)), before, strict=True):
        assert torch.equal(after, old[[1, 1, 2, 1]])


def test_rows_take_the_dtype_of_the_cache():
    cache = PagedCache([CacheSpec((2,))], 1, 4, dtype=torch.bfloat16)
    new = torch.rand(1, 2)
    cache.write(0, torch.tensor([3]), new)
    assert torch.equal(cache.read(0, torch.tensor([[3]]))[0][0], new.bfloat16())


@pytest.mark.parametrize("dtype", LARGEST)
def test_rows_of_8_bits_come_back_rounded_from_slots_and_spans(dtype):
    spec = CacheSpec((20, 7), scale_width=8, kept=2)
    cache = PagedCache([spec], 3, 4, dtype=dtype)
    slots_M = torch.tensor([7, 2, 3, 4])
    rows = [torch.randn(4, width) for width in spec.widths]
    cache.write(0, slots_M, *rows)
    expected = [
        unpack_rows(pack_rows(part_MX, layout, dtype), layout, dtype)
        for part_MX, layout in zip(rows, cache.layouts[0], strict=True)
    ]
    for slots, order in ((slots_M[None], [0, 1, 2, 3]), (Span(2, 0, 1, 3), [1, 2, 3])):
        for found_ZSX, part_MX in zip(cache.read(0, slots), expected, strict=True):
            assert torch.equal(found_ZSX[0], part_MX[order])
    assert cache.size_bytes == 12 * token_bytes([spec], dtype)
    half = PagedCache([spec], 3, 4, dtype=dtype, read_dtype=torch.bfloat16)
    assert half.read(0, slots_M[None])[0].dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("config", "numbers_per_token"),
    [
        # two layers and the MTP layer, C + R = 12 + 6 numbers each
        (latent_config(num_nextn_predict_layers=1, **V3_EXPERTS), 3 * 18),
        # two layers of 2 key heads and 2 value heads, 8 wide
        (grouped_config(), 2 * 2 * 2 * 8),
    ],
    ids=["latent", "grouped"],
)
def test_the_cache_of_a_model_has_its_layers_and_its_dtype(config, numbers_per_token):
    cache = build(config).bfloat16().new_cache(num_blocks=3, block_size=10)
    assert cache.size_bytes == 3 * 10 * numbers_per_token * 2
