"""`rollout/exact.py`: layers of known results have the gradients of those that were computed.

That values are the sampler's to the bit is held in `tests/unit/rl/test_exact_logprobs.py`.
"""

import pytest
import torch
from torch import Tensor

from tests.tiny import build, gradients, random_ids
from ziphius.models.presets import get_preset
from ziphius.rollout.exact import _recomputed_layers


@pytest.mark.parametrize("preset", ["v3-tiny", "v2-tiny", "r1-distill-llama-tiny"])
@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("frozen", [(), ("layers.1.", "embed_tokens")])
def test_gradients_are_those_of_the_same_values(
    preset: str, is_autocast: bool, frozen: tuple[str, ...]
) -> None:
    model = build(get_preset(preset))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    ids_BT = random_ids(1, 12, model.config.vocab_size)
    layers = model.model.layers[: model.config.num_hidden_layers]
    streams: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: streams.append(call[2])) for layer in layers]
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        expected = model(ids_BT).hidden_BTD
    expected.square().sum().backward()
    wanted = gradients(model)
    for hook in hooks:
        hook.remove()
    known_XMD = torch.cat(streams).detach()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_autocast)
    with autocast, _recomputed_layers(model, known_XMD):
        output = model(ids_BT)
    assert torch.equal(output.hidden_BTD, expected)
    assert not output.routings
    output.hidden_BTD.square().sum().backward()
    assert sorted(output.routings) == [
        place for place in range(len(layers)) if model.config.is_expert_layer(place)
    ]
    for name, grad in gradients(model).items():
        assert torch.equal(grad, wanted[name]), name
    assert any(grad.any() for grad in wanted.values())
    assert "forward" not in vars(layers[0])
