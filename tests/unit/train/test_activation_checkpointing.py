import pytest
import torch

from tests.tiny import assert_same_gradients, build, gradients, random_ids
from tests.training import moe_config, train_config
from ziphius.data.batch import Batch
from ziphius.models.block import Block
from ziphius.train.activation_checkpointing import activation_checkpointing
from ziphius.train.stages.language import language_losses


def loss_and_gradients(model, *, is_on: bool):
    ids_BT = random_ids(2, 16, 61)
    batch = Batch(ids_BT, torch.zeros_like(ids_BT))
    with activation_checkpointing(model, is_on):
        output = language_losses(model, batch, train_config(), 0.0)
        total = sum(term.loss_sum for term in output.terms.values())
        total.backward()
    return total, gradients(model)


def test_forgotten_activations_change_nothing() -> None:
    model = build(moe_config())
    expected, expected_gradients = loss_and_gradients(model, is_on=False)
    actual, actual_gradients = loss_and_gradients(model, is_on=True)
    assert torch.equal(actual, expected)
    assert_same_gradients(actual_gradients, expected_gradients)


def test_blocks_keep_their_inputs_alone_and_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(moe_config())
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: calls.append(args[0]) or forward(*args))
    for is_on, times in ((False, 1), (True, 2), (False, 1)):
        calls.clear()
        loss_and_gradients(model, is_on=is_on)
        assert len(calls) == 3 * times


def test_names_stay_the_same() -> None:
    model = build(moe_config())
    names = list(model.state_dict())
    with activation_checkpointing(model):
        assert list(model.state_dict()) == names
