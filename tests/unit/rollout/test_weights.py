"""`rollout/weights.py`: the numbers of autocast, and the weights as they were afterwards."""

import copy
from typing import NoReturn

import pytest
import torch

from ziphius.engine import build
from ziphius.engine.config import EngineConfig
from ziphius.engine.generate import Request, generate
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.ops.native.program_builder import NotNative
from ziphius.rollout.weights import rounded_weights

REQUESTS = [Request([1 + row, 5, 9], 12, row) for row in range(4)]


@pytest.mark.parametrize("preset", ["v3-tiny", "v2-tiny", "r1-distill-llama-tiny"])
@pytest.mark.parametrize("tied", [False, True])
def test_rounding_once_is_what_autocast_does_at_every_product(
    preset: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> NoReturn:
        raise NotNative("of the modules alone")

    monkeypatch.setattr(build, "NativeRunner", refuse)
    model = Model(derive(get_preset(preset), tie_word_embeddings=tied))
    model.initialize(seed=0)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = generate(model, REQUESTS)
    with rounded_weights(model, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        assert model.model.layers[0].self_attn.o_proj.weight.dtype == torch.bfloat16
        assert model.model.embed_tokens.weight.dtype == torch.float32
        actual = generate(model, REQUESTS)
    assert actual == expected
    assert expected != generate(model, REQUESTS)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_autocast_and_rounded_weights_are_left_to_the_modules() -> None:
    """For a native program to compute them: `RolloutEngine`."""
    model = Model(get_preset("v3-tiny"))
    model.initialize(seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in str(build.build_engine(model, EngineConfig(num_blocks=8)).not_native)
        with rounded_weights(model, torch.bfloat16):
            engine = build.build_engine(model, EngineConfig(num_blocks=8))
            assert "bfloat16 among others in torch.float32" in str(engine.not_native)


def test_weights_come_back_after_an_error_and_keep_their_gradients() -> None:
    model = Model(get_preset("v3-tiny"))
    model.initialize(seed=0)
    model.logits(model(torch.tensor([[1, 2]])).hidden_BTD).sum().backward()
    weight = model.model.layers[0].self_attn.o_proj.weight
    place, grad = weight.data_ptr(), weight.grad
    with pytest.raises(ZeroDivisionError), rounded_weights(model, torch.bfloat16):
        raise ZeroDivisionError
    assert weight.data_ptr() == place
    assert weight.dtype == torch.float32
    assert weight.grad is grad
    model.logits(model(torch.tensor([[1, 2]])).hidden_BTD).sum().backward()


def test_float32_needs_no_rounding() -> None:
    model = Model(get_preset("v3-tiny"))
    with rounded_weights(model, torch.float32):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
