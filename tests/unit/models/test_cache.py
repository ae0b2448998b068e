import pytest
import torch

from tests.tiny import V3_EXPERTS, grouped_config, latent_config
from ziphius.models.cache import Cache


def rows(batch, tokens, width, first=0):
    """Distinct numbers, so that a row in the wrong slot shows."""
    return torch.arange(first, first + batch * tokens * width).view(batch, tokens, width).float()


@pytest.fixture
def config():
    return grouped_config(num_hidden_layers=2, num_key_value_heads=1, head_dim=2)


def test_rows_of_equal_lengths_follow_each_other(config):
    cache = Cache(config, 2, 6)
    first, second = rows(2, 3, 2), rows(2, 2, 2, first=100)
    keys, values = cache.append(1, first, first + 0.5)
    cache.advance(3)
    assert torch.equal(keys, first)
    assert torch.equal(values, first + 0.5)
    keys, _ = cache.append(1, second, second)
    assert torch.equal(keys, torch.cat((first, second), dim=1))
    assert cache.append(0, second, second)[0][:, :3].eq(0).all()


def test_rows_of_a_ragged_batch_go_to_their_own_slots(config):
    cache = Cache(config, 3, 9)
    prompt, new = rows(3, 5, 2), rows(3, 2, 2, first=100)
    cache.append(0, prompt, prompt)
    cache.advance(5)
    lengths_B = torch.tensor([5, 1, 3])
    cache.truncate(lengths_B)
    assert cache.next_positions(2).tolist() == [[5, 6], [1, 2], [3, 4]]
    keys, values = cache.append(0, new, new + 0.5)
    assert keys.shape == (3, 7, 2)
    for row, length in enumerate(lengths_B):
        assert torch.equal(keys[row, :length], prompt[row, :length])
        assert torch.equal(keys[row, length : length + 2], new[row])
        assert torch.equal(values[row, length : length + 2], new[row] + 0.5)


def test_appending_does_not_count_until_advance(config):
    cache = Cache(config, 1, 4)
    for layer_idx in (0, 1):
        cache.append(layer_idx, rows(1, 3, 2), rows(1, 3, 2))
        assert cache.lengths_B.tolist() == [0]
    cache.advance(3)
    assert cache.lengths_B.tolist() == [3]


def test_truncate_takes_a_copy(config):
    cache = Cache(config, 2, 4)
    cache.advance(3)
    lengths_B = torch.tensor([2, 3], dtype=torch.int32)
    cache.truncate(lengths_B)
    cache.advance(1)
    assert lengths_B.tolist() == [2, 3]
    assert cache.lengths_B.tolist() == [3, 4]
    assert cache.lengths_B.dtype == torch.int64


def test_a_cache_cannot_be_cut_longer_or_overfilled(config):
    cache = Cache(config, 2, 4)
    cache.advance(3)
    with pytest.raises(AssertionError, match="shorter"):
        cache.truncate(torch.tensor([3, 4]))
    with pytest.raises(AssertionError, match="4 tokens asked to hold 5"):
        cache.append(0, rows(2, 2, 2), rows(2, 2, 2))


def test_keep_reorders_sequences_in_every_layer_and_part(config):
    cache = Cache(config, 3, 4)
    for layer_idx in (0, 1):
        first = rows(3, 2, 2, first=100 * layer_idx)
        cache.append(layer_idx, first, first + 0.5)
    cache.advance(2)
    cache.truncate(torch.tensor([2, 1, 0]))
    cache.keep([2, 0])
    assert cache.lengths_B.tolist() == [0, 2]
    cache.truncate(torch.tensor([0, 2]))
    for layer_idx in (0, 1):
        new = rows(2, 1, 2, first=900)
        keys, values = cache.append(layer_idx, new, new)
        old = rows(3, 2, 2, first=100 * layer_idx)
        assert torch.equal(keys[1], torch.cat((old[0], new[1])))
        assert torch.equal(values[1], torch.cat((old[0] + 0.5, new[1])))
        assert torch.equal(keys[0, :1], new[0])


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
def test_size_is_what_the_config_says(config, numbers_per_token):
    cache = Cache(config, 3, 10, dtype=torch.bfloat16)
    assert cache.size_bytes == 3 * 10 * numbers_per_token * 2


def test_rows_take_the_dtype_of_the_cache(config):
    cache = Cache(config, 2, 4, dtype=torch.bfloat16)
    new = rows(2, 1, 2) + 1 / 3
    assert torch.equal(cache.append(0, new, new)[0], new.bfloat16())
    cache.advance(1)
    cache.truncate(torch.tensor([1, 0]))
    assert torch.equal(cache.append(0, new, new)[0][1, :1], new[1].bfloat16())
