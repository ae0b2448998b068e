import pytest
import torch

from tests.tiny import build, feed, grouped_config, latent_config, random_ids
from ziphius.models.sequences import Sequences

KINDS = pytest.mark.parametrize("make", [latent_config, grouped_config])


@KINDS
@torch.no_grad()
def test_sequences_of_any_length_go_on_in_any_order(make):
    model = build(make())
    ids_BT = random_ids(3, 9, model.config.vocab_size)
    sequences = Sequences(model, 3, 9)
    model(sequences.extend([2, 0], [3, 5], torch.cat((ids_BT[2, :3], ids_BT[0, :5]))))
    output = model(
        sequences.extend(
            [0, 2, 1], [1, 4, 2], torch.cat((ids_BT[0, 5:6], ids_BT[2, 3:7], ids_BT[1, :2]))
        )
    )
    assert sequences.lengths_R.tolist() == [6, 2, 7]
    whole_BTD = model(ids_BT).hidden_BTD
    expected_LD = whole_BTD[[0, 2, 1], [5, 6, 1]]
    torch.testing.assert_close(output.wanted_LD, expected_LD, atol=1e-5, rtol=0)


@KINDS
@torch.no_grad()
def test_a_copy_goes_on_as_its_source_would(make):
    model = build(make())
    ids_BT = random_ids(1, 9, model.config.vocab_size)
    sequences = Sequences(model, 4, 9)
    model(sequences.extend([1], [8], ids_BT[0, :8]))
    sequences.copy(1, [3, 0])
    sequences.copy(1, [])
    assert sequences.lengths_R.tolist() == [8, 8, 0, 8]
    output = model(sequences.extend([0, 1, 3], [1, 1, 1], ids_BT[0, 8:].expand(3)))
    expected_D = model(ids_BT).hidden_BTD[0, -1]
    torch.testing.assert_close(output.wanted_LD, expected_D.expand(3, -1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_forgotten_tokens_are_overwritten():
    model = build(latent_config())
    ids_BT = random_ids(2, 8, model.config.vocab_size)
    sequences = Sequences(model, 2, 8)
    feed(model, sequences, ids_BT.flip(1)[:, :6])
    sequences.lengths_R.zero_()
    torch.testing.assert_close(
        feed(model, sequences, ids_BT), model(ids_BT).hidden_BTD, atol=1e-5, rtol=0
    )


def test_a_block_cannot_be_overfilled():
    sequences = Sequences(build(grouped_config()), 2, 4)
    sequences.extend([1], [3], torch.arange(3))
    with pytest.raises(AssertionError, match="4 tokens asked to hold 5"):
        sequences.extend([0, 1], [2, 2], torch.arange(4))
